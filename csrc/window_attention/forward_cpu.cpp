// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// Forward on the CPU. A task is one head of one window: its keys and values are packed once, then
// blocks of queries run through logits, softmax and output in L1 and L2.
#include <cmath>
#include <limits>

#include "window_attention/windows_cpu.h"

namespace vitadapter::VITADAPTER_ISA {
namespace {

using namespace window_attention;

// Logits to the numerators of the softmax. `count` of them are real, up to `width` there is room;
// each padding key adds exp(0 - peak) to the sum. NaN reaches the sum by its own numerator.
template <typename C>
inline void exponentiate(C* logits, int64_t count, int64_t width, C padding, C* peak, C* sum) {
  using V = LogitVec<C>;
  const C lowest = -std::numeric_limits<C>::infinity();
  for (int64_t j = count; j < width; ++j) logits[j] = lowest;
  V most[kTileVecs], total[kTileVecs];
  for (V& m : most) m = V::set(padding > 0 ? C(0) : lowest);
  for (int64_t j = 0; j < width; j += kTileVecs * V::kLanes) {
    for (int v = 0; v < kTileVecs; ++v)
      most[v] = V::max(most[v], V::load(logits + j + v * V::kLanes));
  }
  C lane[V::kLanes];
  V::max(most[0], most[1]).store(lane);
  *peak = lane[0];
  for (C other : lane) *peak = other > *peak ? other : *peak;
  const V subtracted = V::set(*peak);
  for (V& t : total) t = V::set(0);
  for (int64_t j = 0; j < width; j += kTileVecs * V::kLanes) {
    for (int v = 0; v < kTileVecs; ++v) {
      C* at = logits + j + v * V::kLanes;
      const V numerator = V::exp(V::load(at) - subtracted);
      numerator.store(at);
      total[v] = total[v] + numerator;
    }
  }
  *sum = add_lanes<C>(total[0] + total[1]);
  if (padding > 0) *sum += padding * std::exp(-*peak);
}

template <typename T>
struct Work {
  using C = Compute<T>;

  const WindowAttentionParams& p;

  void run(TaskQueue& queue) const {
    const Windows windows(p);
    const int64_t D = p.channels, row = round_up(D, kPanel<C>), most = windows.most_tokens();
    const int64_t width = round_up(most, kPanel<C>);
    Scratch<C> keys(packed_size<C>(most, D)), values(packed_size<C>(most, D));
    Scratch<C> queries(kBlockRows * row), sums(kBlockRows * row), logits(kBlockRows * width);
    Scratch<int64_t> token(most);
    const C scale = static_cast<C>(1 / std::sqrt(static_cast<double>(D)));
    for (int64_t task; queue.take(&task);) {
      const Window window = windows.find(task, token);
      const int64_t n = window.tokens, columns = round_up(n, kPanel<C>);
      const Rows<const T> from = input_rows<T>(p, window, 0);
      const Right<C> key = pack_transposed(window, input_rows<T>(p, window, 1), D, scale, +keys);
      const Right<C> value = pack(window, input_rows<T>(p, window, 2), D, C(1), +values);
      const Rows<T> out = dense_rows(p, window, static_cast<T*>(p.out), 1, 0);
      C* logsumexp =
          static_cast<C*>(p.logsumexp) + window.batch * p.hw.h * p.hw.w * p.heads + window.head;
      for (int64_t begin = 0; begin < n; begin += kBlockRows) {
        const int64_t rows = n - begin < kBlockRows ? n - begin : kBlockRows;
        load_rows(window, from, begin, rows, D, +queries, row);
        multiply<false>(rows, n, D, Left<C>{queries, row, 1}, key, +logits, columns);
        C inverse[kBlockRows];
        for (int64_t i = 0; i < rows; ++i) {
          C peak, sum;
          exponentiate<C>(logits + i * columns, n, columns, static_cast<C>(window.padding), &peak,
                          &sum);
          inverse[i] = 1 / sum;
          logsumexp[window.token[begin + i] * p.heads] = peak + std::log(sum);
        }
        multiply<false>(rows, D, n, Left<C>{logits, columns, 1}, value, +sums, row);
        for (int64_t i = 0; i < rows; ++i)
          store_row(sums + i * row, D, inverse[i], out.of(window, begin + i));
      }
    }
  }
};

}  // namespace

void window_attention_forward(const WindowAttentionParams& p) {
  with_type(p.dtype, p.qkv, [&](auto* qkv) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(qkv)>>;
    Work<T> work{p};
    run_workers(
        Windows(p).tasks(), p.num_threads,
        [](void* work, TaskQueue& queue) { static_cast<Work<T>*>(work)->run(queue); }, &work);
  });
}

}  // namespace vitadapter::VITADAPTER_ISA
