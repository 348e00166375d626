// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// Forward on the CPU for bfloat16, with products of 16 bits; softmax and sums are of float32. A
// task is one head of one window, as in forward_cpu.cpp: keys and values are packed once, then
// blocks of queries run through logits, softmax and output.
#include <cmath>
#include <limits>

#include "window_attention/half_cpu.h"

namespace vitadapter::VITADAPTER_ISA {
namespace {

using namespace window_attention;

constexpr int64_t kBlockQueries = 3 * kLeftRows;  // that are worked on together
constexpr float kMostShare = 16;                  // what 1 is as a share of a query, in 16 bits

struct Work {
  const WindowAttentionParams& p;

  void run(TaskQueue& queue) const {
    const Windows windows(p);
    const int64_t D = p.channels, most = windows.most_tokens(), groups = Halves::groups_of(D);
    const int64_t key_blocks = ceil_div(most, kRightRows), value_blocks = ceil_div(D, kRightRows);
    const int64_t width = key_blocks * kRightRows, most_groups = Halves::groups_of(most);
    Scratch<uint8_t> keys(key_blocks * Halves::bytes(groups, kRightRows));
    Scratch<uint8_t> values(value_blocks * Halves::bytes(most_groups, kRightRows));
    Scratch<uint8_t> rows(kRightRows * groups * 4), queries(kBlockQueries * groups * 4);
    Scratch<uint8_t> shares(kBlockQueries * most_groups * 4);
    Scratch<float> logits(kBlockQueries * width);
    ColumnPacker columns(most, value_blocks);
    Scratch<int64_t> token(most);
    const float scale = static_cast<float>(1 / std::sqrt(static_cast<double>(D)));
    for (int64_t task; queue.take(&task);) {
      const Window window = windows.find(task, token);
      const Halves key{keys, groups, kRightRows};
      const Halves value{values, Halves::groups_of(window.tokens), kRightRows};
      pack_tokens(window, inputs(window, 1), D, scale, rows, key);
      pack_channels(window, inputs(window, 2), 0, window.tokens, D, 1, columns, value);
      for (int64_t begin = 0; begin < window.tokens; begin += kBlockQueries)
        attend(window, begin, key, value, queries, logits, shares);
    }
  }

  Rows<const BFloat16> inputs(const Window& window, int which) const {
    return input_rows<BFloat16>(p, window, which);
  }

  // Queries begin ... of a window, up to kBlockQueries.
  void attend(const Window& window, int64_t begin, const Halves& key, const Halves& value,
              uint8_t* queries, float* logits, uint8_t* shares) const {
    const int64_t count = least(kBlockQueries, window.tokens - begin);
    const int64_t width = ceil_div(window.tokens, kRightRows) * kRightRows;
    const int64_t share_row = value.groups * 4;
    float factors[kBlockQueries];
    multiply_tokens(window, inputs(window, 0), begin, count, p.channels, key, queries, factors,
                    logits, width);
    for (int64_t i = 0; i < count; ++i)
      factors[i] = share(window, begin + i, logits + i * width, shares + i * share_row);
    const Rows<BFloat16> out = dense_rows(p, window, static_cast<BFloat16*>(p.out), 1, 0);
    multiply_rows(shares, share_row, factors, count, value, p.channels,
                  [&](int64_t i, int64_t c, __m512 products) {
                    store(out.of(window, begin + i) + c, first_lanes(p.channels - c), products);
                  });
  }

  // The logits of a query to its shares, times kMostShare over the largest, in 16 bits; returns
  // what 1 stands for in them. Each padding key adds exp(0 - peak) to their sum.
  float share(const Window& window, int64_t query, float* logits, uint8_t* shares) const {
    const float lowest = -std::numeric_limits<float>::infinity();
    __m512 most = _mm512_set1_ps(window.padding > 0 ? 0 : lowest), total = _mm512_setzero_ps();
    over_lanes(window.tokens, [&](int64_t j, __mmask16 lanes) {
      most = _mm512_mask_max_ps(most, lanes, most, _mm512_loadu_ps(logits + j));
    });
    const float peak = _mm512_reduce_max_ps(most);
    over_lanes(window.tokens, [&](int64_t j, __mmask16 lanes) {
      const __m512 away = _mm512_sub_ps(_mm512_loadu_ps(logits + j), _mm512_set1_ps(peak));
      const __m512 numerator = _mm512_maskz_mov_ps(lanes, Wide<float>::exp({away}).v);
      total = _mm512_add_ps(total, numerator);
      const __m256i halves = to_halves(_mm512_mul_ps(numerator, _mm512_set1_ps(kMostShare)));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(shares + j * 2), halves);
    });
    float sum = _mm512_reduce_add_ps(total);
    if (window.padding > 0) sum += static_cast<float>(window.padding) * std::exp(-peak);
    static_cast<float*>(
        p.logsumexp)[(window.batch * p.hw.h * p.hw.w + window.token[query]) * p.heads +
                     window.head] = peak + std::log(sum);
    return 1 / (sum * kMostShare);
  }
};

}  // namespace

void window_attention_forward_half(const WindowAttentionParams& p) {
  Work work{p};
  run_workers(
      Windows(p).tasks(), p.num_threads,
      [](void* work, TaskQueue& queue) { static_cast<Work*>(work)->run(queue); }, &work);
}

}  // namespace vitadapter::VITADAPTER_ISA
