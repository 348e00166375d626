// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// Backward on the CPU. Tasks are those of forward, and blocks of queries as well: probabilities are
// recomputed from logsumexp. A task adds up the gradients of its keys and values alone, in the
// order of the queries: bit-equal for any number of threads. Padding keys get no gradient, so they
// only appear in logsumexp.
#include <cmath>

#include "window_attention/softmax_gradient_cpu.h"

namespace vitadapter::VITADAPTER_ISA {
namespace {

using namespace window_attention;

template <typename T>
struct Work {
  using C = Compute<T>;

  const WindowAttentionParams& p;

  Rows<const T> grad_out_rows(const Window& window) const {
    const T* first = static_cast<const T*>(p.grad_out) + window.batch * p.grad_out_stride_b +
                     window.head * p.channels;
    return {first, p.grad_out_stride_n};
  }

  void run(TaskQueue& queue) const {
    const Windows windows(p);
    const int64_t D = p.channels, row = round_up(D, kPanel<C>), most = windows.most_tokens();
    const int64_t width = round_up(most, kPanel<C>), packed = packed_size<C>(most, D);
    Scratch<C> keys(packed), values(packed), keys_by_channel(packed);
    Scratch<C> queries(kBlockRows * row), cotangents(kBlockRows * row), sums(kBlockRows * row);
    Scratch<C> logits(kBlockRows * width), gradients(kBlockRows * width);
    Scratch<C> grad_keys(most * row), grad_values(most * row);
    Scratch<int64_t> token(most);
    const C scale = static_cast<C>(1 / std::sqrt(static_cast<double>(D)));
    for (int64_t task; queue.take(&task);) {
      const Window window = windows.find(task, token);
      const int64_t n = window.tokens, columns = round_up(n, kPanel<C>);
      const Rows<const T> query_rows = input_rows<T>(p, window, 0);
      const Rows<const T> key_rows = input_rows<T>(p, window, 1);
      const Rows<const T> grad_out = grad_out_rows(window);
      T* grad_qkv = static_cast<T*>(p.grad_qkv);
      const Rows<T> grad_query = dense_rows(p, window, grad_qkv, 3, 0);
      const Rows<T> grad_key = dense_rows(p, window, grad_qkv, 3, 1);
      const Rows<T> grad_value = dense_rows(p, window, grad_qkv, 3, 2);
      const C* logsumexp = static_cast<const C*>(p.logsumexp) +
                           window.batch * p.hw.h * p.hw.w * p.heads + window.head;
      const Right<C> key = pack_transposed(window, key_rows, D, scale, +keys);
      const Right<C> key_by_channel = pack(window, key_rows, D, scale, +keys_by_channel);
      const Right<C> value = pack_transposed(window, input_rows<T>(p, window, 2), D, C(1), +values);
      std::memset(grad_keys, 0, n * row * sizeof(C));
      std::memset(grad_values, 0, n * row * sizeof(C));
      for (int64_t begin = 0; begin < n; begin += kBlockRows) {
        const int64_t rows = n - begin < kBlockRows ? n - begin : kBlockRows;
        load_rows(window, query_rows, begin, rows, D, +queries, row);
        load_rows(window, grad_out, begin, rows, D, +cotangents, row);
        multiply<false>(rows, n, D, Left<C>{queries, row, 1}, key, +logits, columns);
        multiply<false>(rows, n, D, Left<C>{cotangents, row, 1}, value, +gradients, columns);
        for (int64_t i = 0; i < rows; ++i) {
          differentiate<C>(logits + i * columns, gradients + i * columns, n, columns,
                           static_cast<C>(window.padding),
                           logsumexp[window.token[begin + i] * p.heads]);
        }
        multiply<true>(n, D, rows, Left<C>{logits, 1, columns},
                       Right<C>{cotangents, row, kPanel<C>}, +grad_values, row);
        multiply<true>(n, D, rows, Left<C>{gradients, 1, columns},
                       Right<C>{queries, row, kPanel<C>}, +grad_keys, row);
        multiply<false>(rows, D, n, Left<C>{gradients, columns, 1}, key_by_channel, +sums, row);
        for (int64_t i = 0; i < rows; ++i)
          store_row(sums + i * row, D, C(1), grad_query.of(window, begin + i));
      }
      for (int64_t j = 0; j < n; ++j) {
        store_row(grad_keys + j * row, D, scale, grad_key.of(window, j));
        store_row(grad_values + j * row, D, C(1), grad_value.of(window, j));
      }
    }
  }
};

}  // namespace

void window_attention_backward(const WindowAttentionParams& p) {
  with_type(p.dtype, p.qkv, [&](auto* qkv) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(qkv)>>;
    Work<T> work{p};
    run_workers(
        Windows(p).tasks(), p.num_threads,
        [](void* work, TaskQueue& queue) { static_cast<Work<T>*>(work)->run(queue); }, &work);
  });
}

}  // namespace vitadapter::VITADAPTER_ISA
