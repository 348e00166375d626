// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// One task is some neighboring tokens of an image. The cosines and sines of a token, its row's and
// then its column's, lie in L1 for all its heads.
#include <cstring>

#include "common/scratch.h"
#include "common/simd.h"
#include "common/workers.h"
#include "rope/params.h"

namespace vitadapter::VITADAPTER_ISA {
namespace {

constexpr int64_t kTokens = 16;

// Rotates pair d, components d and d + half, of one head.
template <typename V, typename T, typename C>
void rotate(const T* from, T* to, const C* cos, const C* sin, int64_t half, int64_t d) {
  const V first = V::load(from + d), second = V::load(from + half + d);
  const V c = V::load(cos + d), s = V::load(sin + d);
  (first * c - second * s).store(to + d);
  V::fma(first, s, second * c).store(to + half + d);
}

template <typename T>
struct Worker {
  using C = Compute<T>;
  using V = Vec<C>;

  const RopeParams& p;
  const T* const qkv = static_cast<const T*>(p.qkv);
  T* const out = static_cast<T*>(p.out);
  const int64_t half = p.channels / 2, row = p.heads * p.channels;
  const bool is_in_place = p.qkv == p.out;
  const int64_t grid = static_cast<int64_t>(p.hw.h) * p.hw.w;

  void load_tables(int64_t token, C* cos, C* sin) const {
    const int64_t quarter = half / 2, y = token / p.hw.w, x = token % p.hw.w;
    const C sign = p.is_inverse ? -1 : 1;
    for (int axis = 0; axis < 2; ++axis) {
      const C* const from =
          static_cast<const C*>(p.tables) + (axis == 0 ? y : p.hw.h + x) * 2 * quarter;
      for (int64_t k = 0; k < quarter; ++k) {
        cos[axis * quarter + k] = from[k];
        sin[axis * quarter + k] = sign * from[quarter + k];
      }
    }
  }

  void run(int64_t image, int64_t token, C* cos, C* sin) const {
    const T* const from = qkv + image * p.qkv_stride_b + token * p.qkv_stride_n;
    T* const to = out + image * p.out_stride_b + token * p.out_stride_n;
    int64_t rotated = 0;  // elements
    if (token < grid) {
      load_tables(token, cos, sin);
      rotated = 2 * row;
      for (int64_t at = 0; at < rotated; at += p.channels) {
        int64_t d = 0;
        for (; d + V::kLanes <= half; d += V::kLanes)
          rotate<V>(from + at, to + at, cos, sin, half, d);
        for (; d < half; ++d) rotate<Vec<C, 1>>(from + at, to + at, cos, sin, half, d);
      }
    }
    if (!is_in_place) std::memcpy(to + rotated, from + rotated, (3 * row - rotated) * sizeof(T));
  }
};

template <typename T>
void work(void* context, TaskQueue& queue) {
  const Worker<T> worker{*static_cast<const RopeParams*>(context)};
  const RopeParams& p = worker.p;
  Scratch<Compute<T>> cos(worker.half), sin(worker.half);
  const int64_t tokens = worker.is_in_place ? worker.grid : p.num_tokens;
  const int64_t blocks = (tokens + kTokens - 1) / kTokens;
  for (int64_t task; queue.take(&task);) {
    const int64_t first = task % blocks * kTokens;
    const int64_t end = first + kTokens < tokens ? first + kTokens : tokens;
    for (int64_t token = first; token < end; ++token) worker.run(task / blocks, token, cos, sin);
  }
}

}  // namespace

void rope(const RopeParams& p) {
  const bool is_in_place = p.qkv == p.out;
  const int64_t tokens = is_in_place ? static_cast<int64_t>(p.hw.h) * p.hw.w : p.num_tokens;
  const int64_t tasks = p.batch * ((tokens + kTokens - 1) / kTokens);
  with_type(p.dtype, p.qkv, [&](auto* qkv) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(qkv)>>;
    run_workers(tasks, p.num_threads, work<T>, const_cast<RopeParams*>(&p));
  });
}

}  // namespace vitadapter::VITADAPTER_ISA
