// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// Small matrix products out of L1 and L2: two vectors of columns and a few rows stay in registers.
#pragma once

#include "common/scratch.h"
#include "common/simd.h"

// A namespace of its own: names of two ops that mean different things must not meet in the linker.
namespace vitadapter::VITADAPTER_ISA::window_attention {

// 12 sums, two vectors of the right matrix and one number of the left: 15 of 16 registers, and
// more sums than two units of 4 cycles each have in flight. Of AVX-512's 32 registers, 27.
#ifdef VITADAPTER_AVX512
constexpr int kTileRows = 12;
#else
constexpr int kTileRows = 6;
#endif
constexpr int kTileVecs = 2;

template <typename C>
constexpr int64_t kPanel = kTileVecs * Wide<C>::kLanes;

inline int64_t round_up(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

// Element (i, k) of the left matrix lies at data[i * row + k * depth].
template <typename C>
struct Left {
  const C* data;
  int64_t row, depth;
};

// Columns come in panels of kPanel; rows of a panel lie `depth` apart, panels `panel` apart.
template <typename C>
struct Right {
  const C* data;
  int64_t depth, panel;
};

template <int kRows, int kVecs, bool kAdds, typename C>
inline void multiply_tile(Left<C> left, const C* right, int64_t right_depth, int64_t depth, C* to,
                          int64_t to_row) {
  using V = Wide<C>;
  V sum[kRows][kVecs];
  for (int i = 0; i < kRows; ++i) {
    for (int v = 0; v < kVecs; ++v)
      sum[i][v] = kAdds ? V::load(to + i * to_row + v * V::kLanes) : V::set(0);
  }
  const C* a = left.data;
  for (int64_t k = 0; k < depth; ++k, a += left.depth, right += right_depth) {
    V b[kVecs];
    for (int v = 0; v < kVecs; ++v) b[v] = V::load(right + v * V::kLanes);
    for (int i = 0; i < kRows; ++i) {
      const V factor = V::set(a[i * left.row]);
      for (int v = 0; v < kVecs; ++v) sum[i][v] = V::fma(factor, b[v], sum[i][v]);
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int v = 0; v < kVecs; ++v) sum[i][v].store(to + i * to_row + v * V::kLanes);
  }
}

template <int kVecs, bool kAdds, typename C>
inline void multiply_panel(int64_t rows, Left<C> left, const C* right, int64_t right_depth,
                           int64_t depth, C* to, int64_t to_row) {
  auto run = [&](auto tile) { tile(left, right, right_depth, depth, to, to_row); };
  for (; rows >= kTileRows; rows -= kTileRows) {
    run(multiply_tile<kTileRows, kVecs, kAdds, C>);
    left.data += kTileRows * left.row;
    to += kTileRows * to_row;
  }
  if (rows >= 6) {
    run(multiply_tile<6, kVecs, kAdds, C>);
    left.data += 6 * left.row;
    to += 6 * to_row;
    rows -= 6;
  }
  static_assert(kTileRows <= 12, "one case for each remainder");
  switch (rows) {
    case 5:
      return run(multiply_tile<5, kVecs, kAdds, C>);
    case 4:
      return run(multiply_tile<4, kVecs, kAdds, C>);
    case 3:
      return run(multiply_tile<3, kVecs, kAdds, C>);
    case 2:
      return run(multiply_tile<2, kVecs, kAdds, C>);
    case 1:
      return run(multiply_tile<1, kVecs, kAdds, C>);
  }
}

// to = left * right, or to += left * right. Columns are rounded up to whole vectors, for which
// there must be room; panels come first, so that one stays in L1 while the rows pass by.
template <bool kAdds, typename C>
inline void multiply(int64_t rows, int64_t columns, int64_t depth, Left<C> left, Right<C> right,
                     C* to, int64_t to_row) {
  for (; columns > Wide<C>::kLanes; columns -= kPanel<C>) {
    multiply_panel<kTileVecs, kAdds>(rows, left, right.data, right.depth, depth, to, to_row);
    right.data += right.panel;
    to += kPanel<C>;
  }
  if (columns > 0) multiply_panel<1, kAdds>(rows, left, right.data, right.depth, depth, to, to_row);
}

}  // namespace vitadapter::VITADAPTER_ISA::window_attention
