// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// Rows become columns, tile by tile in registers, and may change their type on the way.
#pragma once

#include "common/simd.h"

namespace vitadapter::VITADAPTER_ISA {

template <typename V, typename From, typename To>
inline void transpose_tile(const From* __restrict from, int64_t stride, To* __restrict to,
                           int64_t to_stride) {
  V tile[V::kLanes];
  for (int i = 0; i < V::kLanes; ++i) tile[i] = V::load(from + i * stride);
  V::transpose(tile);
  for (int i = 0; i < V::kLanes; ++i) tile[i].store(to + i * to_stride);
}

// out[c * out_stride + n] = rows[n * stride + c] for n < num_rows, c < columns.
template <typename C, typename From, typename To>
inline void transpose(const From* __restrict rows, int64_t stride, int num_rows, int columns,
                      To* __restrict out, int64_t out_stride) {
  using V = Vec<C>;
  const int n_tiled = num_rows / V::kLanes * V::kLanes, c_tiled = columns / V::kLanes * V::kLanes;
  for (int c = 0; c < c_tiled; c += V::kLanes) {
    for (int n = 0; n < n_tiled; n += V::kLanes)
      transpose_tile<V>(rows + n * stride + c, stride, out + c * out_stride + n, out_stride);
  }
  for (int n = 0; n < num_rows; ++n) {
    for (int c = n < n_tiled ? c_tiled : 0; c < columns; ++c)
      transpose_tile<Vec<C, 1>>(rows + n * stride + c, stride, out + c * out_stride + n,
                                out_stride);
  }
}

}  // namespace vitadapter::VITADAPTER_ISA
