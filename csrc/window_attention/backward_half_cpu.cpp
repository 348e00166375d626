// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// Backward on the CPU for bfloat16, with products of 16 bits; softmax, its gradient and sums are of
// float32. Tasks and blocks of queries are those of backward_cpu.cpp. The gradients of keys and
// values are products over the queries of a block, added up in float32 in the order of blocks.
#include <cmath>
#include <cstring>

#include "window_attention/half_cpu.h"
#include "window_attention/softmax_gradient_cpu.h"

namespace vitadapter::VITADAPTER_ISA {
namespace {

using namespace window_attention;

constexpr int64_t kBlockQueries =
    2 * kSteps;  // that are worked on together: their logits stay in L2

class Worker {
 public:
  explicit Worker(const WindowAttentionParams& p)
      : p_(p),
        windows_(p),
        most_(windows_.most_tokens()),
        row_(round_up(p.channels, kRightRows)),
        groups_(Halves::groups_of(p.channels)),
        stride_(round_up(most_, kPanel<float>) + kRightRows),
        scale_(static_cast<float>(1 / std::sqrt(static_cast<double>(p.channels)))),
        token_(most_),
        keys_(tokens_bytes()),
        values_(tokens_bytes()),
        key_channels_(channels_bytes(most_)),
        query_channels_(channels_bytes(kBlockQueries)),
        cotangent_channels_(channels_bytes(kBlockQueries)),
        token_rows_(kRightRows * groups_ * 4),
        block_rows_(kBlockQueries * (groups_ + Halves::groups_of(most_)) * 4),
        columns_(2 * Halves::bytes(Halves::groups_of(kBlockQueries), kLeftRows)),
        logits_(kBlockQueries * stride_),
        gradients_(kBlockQueries * stride_),
        grad_keys_(most_ * row_),
        grad_values_(most_ * row_),
        packer_(most_ > kBlockQueries ? most_ : kBlockQueries, row_ / kRightRows) {}

  void run(TaskQueue& queue) {
    for (int64_t task; queue.take(&task);) differentiate_window(windows_.find(task, token_));
  }

 private:
  int64_t tokens_bytes() const {
    return ceil_div(most_, kRightRows) * Halves::bytes(groups_, kRightRows);
  }
  int64_t channels_bytes(int64_t tokens) const {
    return row_ / kRightRows * Halves::bytes(Halves::groups_of(tokens), kRightRows);
  }

  Rows<const BFloat16> inputs(const Window& window, int which) const {
    return input_rows<BFloat16>(p_, window, which);
  }
  Rows<BFloat16> results(const Window& window, int which) const {
    return dense_rows(p_, window, static_cast<BFloat16*>(p_.grad_qkv), 3, which);
  }
  Rows<const BFloat16> cotangents(const Window& window) const {
    const BFloat16* first = static_cast<const BFloat16*>(p_.grad_out) +
                            window.batch * p_.grad_out_stride_b + window.head * p_.channels;
    return {first, p_.grad_out_stride_n};
  }

  void differentiate_window(const Window& window) {
    const int64_t n = window.tokens, D = p_.channels;
    const Halves key{keys_, groups_, kRightRows}, value{values_, groups_, kRightRows};
    const Halves key_by_channel{key_channels_, Halves::groups_of(n), kRightRows};
    pack_tokens(window, inputs(window, 1), D, scale_, token_rows_, key);
    pack_tokens(window, inputs(window, 2), D, 1, token_rows_, value);
    pack_channels(window, inputs(window, 1), 0, n, D, scale_, packer_, key_by_channel);
    std::memset(grad_keys_, 0, n * row_ * sizeof(float));
    std::memset(grad_values_, 0, n * row_ * sizeof(float));
    for (int64_t begin = 0; begin < n; begin += kBlockQueries)
      differentiate_block(window, begin, key, value, key_by_channel);
    store_rows(window, grad_keys_, scale_, results(window, 1));
    store_rows(window, grad_values_, 1, results(window, 2));
  }

  // Queries begin ... of a window, up to kBlockQueries.
  void differentiate_block(const Window& window, int64_t begin, const Halves& key,
                           const Halves& value, const Halves& key_by_channel) {
    const int64_t n = window.tokens, D = p_.channels, width = round_up(n, kPanel<float>);
    const int64_t count = least(kBlockQueries, n - begin);
    const Rows<const BFloat16> queries = inputs(window, 0), grad_out = cotangents(window);
    float inverse[kBlockQueries];
    multiply_tokens(window, queries, begin, count, D, key, block_rows_, inverse, logits_, stride_);
    multiply_tokens(window, grad_out, begin, count, D, value, block_rows_, inverse, gradients_,
                    stride_);
    const float* const logsumexp = static_cast<const float*>(p_.logsumexp) +
                                   window.batch * p_.hw.h * p_.hw.w * p_.heads + window.head;
    for (int64_t i = 0; i < count; ++i)
      differentiate<float>(logits_ + i * stride_, gradients_ + i * stride_, n, width,
                           static_cast<float>(window.padding),
                           logsumexp[window.token[begin + i] * p_.heads]);
    const Halves cotangent{cotangent_channels_, Halves::groups_of(count), kRightRows};
    const Halves query{query_channels_, Halves::groups_of(count), kRightRows};
    pack_channels(window, grad_out, begin, count, D, 1, packer_, cotangent);
    pack_channels(window, queries, begin, count, D, 1, packer_, query);
    add_transposed(logits_, count, n, cotangent, grad_values_);
    add_transposed(gradients_, count, n, query, grad_keys_);
    const int64_t row = key_by_channel.groups * 4;
    for (int64_t i = 0; i < count; ++i)
      inverse[i] = round_row(gradients_ + i * stride_, n, kLeftExponent, block_rows_ + i * row);
    const Rows<BFloat16> to = results(window, 0);
    multiply_rows(block_rows_, row, inverse, count, key_by_channel, D,
                  [&](int64_t i, int64_t c, __m512 products) {
                    store(to.of(window, begin + i) + c, first_lanes(D - c), products);
                  });
  }

  // Adds to a row for each token: the column of it in `rows`, one number for each query, times the
  // channels of the queries.
  void add_transposed(const float* rows, int64_t count, int64_t tokens, const Halves& right,
                      float* to) {
    const Halves left{columns_, right.groups, kLeftRows};
    for (int64_t first = 0; first < tokens; first += 2 * kLeftRows) {
      packer_.pack(least(2 * kLeftRows, tokens - first), count, kLeftExponent, nullptr, left,
                   [&](int64_t i) { return rows + i * stride_ + first; });
      for (int64_t token = first; token < least(first + 2 * kLeftRows, tokens); token += kLeftRows)
        add_products(left.block((token - first) / kLeftRows), least(kLeftRows, tokens - token),
                     right, to + token * row_);
    }
  }

  void add_products(const Halves& left, int64_t rows, const Halves& right, float* to) const {
    over_blocks(row_ / kRightRows, [&](auto many, int64_t block) {
      const auto tile = multiply_halves<many>(left.data, 4, left.step(), right.block(block));
      for (int b = 0; b < many; ++b) {
        const __m512 scale = _mm512_loadu_ps(right.block(block + b).inverse());
        for (int r = 0; r < rows; ++r) {
          float* const at = to + r * row_ + (block + b) * kRightRows;
          const __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(left.inverse()[r]));
          _mm512_storeu_ps(at, _mm512_fmadd_ps(tile.sums(r, b), both, _mm512_loadu_ps(at)));
        }
      }
    });
  }

  void store_rows(const Window& window, const float* rows, float scale, Rows<BFloat16> to) const {
    for (int64_t i = 0; i < window.tokens; ++i)
      store_row(rows + i * row_, p_.channels, scale, to.of(window, i));
  }

  const WindowAttentionParams& p_;
  const Windows windows_;
  const int64_t most_;    // tokens of a window
  const int64_t row_;     // numbers of one token, in float32
  const int64_t groups_;  // of its channels
  const int64_t stride_;  // of logits: no power of two, of which columns share few sets of L1
  const float scale_;
  Scratch<int64_t> token_;
  Scratch<uint8_t> keys_, values_, key_channels_, query_channels_, cotangent_channels_;
  Scratch<uint8_t> token_rows_, block_rows_, columns_;
  Scratch<float> logits_, gradients_, grad_keys_, grad_values_;
  ColumnPacker packer_;
};

}  // namespace

void window_attention_backward_half(const WindowAttentionParams& p) {
  WindowAttentionParams copy = p;
  run_workers(
      Windows(p).tasks(), p.num_threads,
      [](void* params, TaskQueue& queue) {
        Worker(*static_cast<const WindowAttentionParams*>(params)).run(queue);
      },
      &copy);
}

}  // namespace vitadapter::VITADAPTER_ISA
