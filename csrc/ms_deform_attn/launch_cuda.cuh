// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// What the kernels are told, and how they are launched: sizes as host integers, tiles of queries
// over blocks, and the choice of the specialized kernel for a call.
#pragma once

#include <initializer_list>

#include "common/check.h"
#include "common/device.cuh"
#include "common/dispatch.h"
#include "ms_deform_attn/params.h"

namespace vitadapter::VITADAPTER_ISA {

constexpr int kThreads = 256;
constexpr int kMaxLevels = 16, kMaxGrids = 16;

// n / d for 0 <= n < 2^31 in three instructions; Granlund and Montgomery 1994.
struct FastDivisor {
  unsigned magic = 0, shift = 0, divisor = 1;

  FastDivisor() = default;
  explicit FastDivisor(unsigned d) : divisor(d) {
    while ((uint64_t(1) << shift) < d) ++shift;
    magic = static_cast<unsigned>((((uint64_t(1) << shift) - d) << 32) / d + 1);
  }
  __device__ __forceinline__ int divide(int n) const {
    return static_cast<int>((__umulhi(static_cast<unsigned>(n), magic) + n) >> shift);
  }
};

struct Level {
  int h, w, start;
  int step_x, step_y;  // to the right and lower pixel; 0 where the map has only one
  int first_cell;      // of the level's (h + 1) x (w + 1) cells between pixels
};

struct QueryGrid {
  int h, w, first_query, first_tile;
  float inverse_h, inverse_w;
  FastDivisor tiles_across;
};

struct KernelParams {
  const void *value, *points, *weights, *grad_out;
  void *out, *grad_points, *grad_weights;
  // One of these, by backward mode.
  void* grad_value;  // in the compute type
  int *cell_of_point, *rank_of_point, *points_in_cell;
  void* records;
  int64_t value_stride_b, points_stride_b, points_stride_q, weights_stride_b, weights_stride_q,
      grad_out_stride_b, grad_out_stride_q;
  int value_stride_s;
  DType points_dtype, weights_dtype;
  int heads, channels, queries, tokens, levels, num_points, query_grids, cells;
  int first_tile, first_batch;
  Level level[kMaxLevels];
  QueryGrid grid[kMaxGrids];
};

// The parameters of a launch whose blocks work on tiles of slots queries, tile_w x tile_h of a
// grid, and the number of tiles of one image.
inline KernelParams kernel_params(const MsDeformAttnParams& p, int slots, int tile_w, int tile_h,
                                  int64_t* tiles) {
  VITADAPTER_CHECK(p.levels <= kMaxLevels && p.query_grids <= kMaxGrids,
                   "ms_deform_attn: at most 16 levels and 16 query grids");
  KernelParams k{};
  k.value = p.value, k.points = p.points, k.weights = p.weights, k.out = p.out;
  k.grad_out = p.grad_out, k.grad_points = p.grad_points, k.grad_weights = p.grad_weights;
  k.grad_value = p.grad_value;
  k.cell_of_point = p.cell_of_point, k.rank_of_point = p.rank_of_point;
  k.points_in_cell = p.points_in_cell, k.records = p.records;
  k.value_stride_b = p.value_stride_b, k.value_stride_s = static_cast<int>(p.value_stride_s);
  k.points_stride_b = p.points_stride_b, k.points_stride_q = p.points_stride_q;
  k.weights_stride_b = p.weights_stride_b, k.weights_stride_q = p.weights_stride_q;
  k.grad_out_stride_b = p.grad_out_stride_b, k.grad_out_stride_q = p.grad_out_stride_q;
  k.points_dtype = p.points_dtype, k.weights_dtype = p.weights_dtype;
  k.heads = static_cast<int>(p.heads), k.channels = static_cast<int>(p.channels);
  k.queries = static_cast<int>(p.queries), k.tokens = static_cast<int>(p.tokens);
  k.levels = static_cast<int>(p.levels), k.num_points = static_cast<int>(p.num_points);
  k.query_grids = static_cast<int>(p.query_grids);
  int start = 0;
  for (int l = 0; l < k.levels; ++l) {
    const SizeHW hw = p.level_hw[l];
    k.level[l] = {hw.h, hw.w, start, hw.w > 1 ? 1 : 0, hw.h > 1 ? hw.w : 0, k.cells};
    start += hw.h * hw.w;
    k.cells += (hw.h + 1) * (hw.w + 1);
  }
  *tiles = (p.queries + slots - 1) / slots;
  if (!p.query_hw) return k;
  *tiles = 0;
  int first_query = 0;
  for (int g = 0; g < k.query_grids; ++g) {
    const SizeHW hw = p.query_hw[g];
    const int across = (hw.w + tile_w - 1) / tile_w;
    k.grid[g] = {hw.h,       hw.w,       first_query,        static_cast<int>(*tiles),
                 1.f / hw.h, 1.f / hw.w, FastDivisor(across)};
    first_query += hw.h * hw.w;
    *tiles += static_cast<int64_t>(across) * ((hw.h + tile_h - 1) / tile_h);
  }
  return k;
}

// Launches a kernel over all heads, tiles and images, in as many launches as the grid limits ask.
inline void launch_tiles(const char* name, void (*kernel)(const KernelParams), KernelParams k,
                         int64_t tiles, const MsDeformAttnParams& p) {
  for (int64_t batch = 0; batch < p.batch; batch += kMaxGridYZ) {
    for (int64_t tile = 0; tile < tiles; tile += kMaxGridYZ) {
      k.first_batch = static_cast<int>(batch);
      k.first_tile = static_cast<int>(tile);
      const Grid grid{p.heads, tiles - tile < kMaxGridYZ ? tiles - tile : kMaxGridYZ,
                      p.batch - batch < kMaxGridYZ ? p.batch - batch : kMaxGridYZ};
      launch(name, kernel, grid, kThreads, k, p.device, p.stream);
    }
  }
}

template <typename Tile>
KernelParams tiled_params(const MsDeformAttnParams& p, int slots, int64_t* tiles) {
  return kernel_params(p, slots, Tile::kWidth, Tile::kHeight, tiles);
}

// Whether 16-byte reads of the value and 2-element reads of the points stay aligned, and the dtypes
// are those of the specialized kernels.
inline bool is_specializable(const MsDeformAttnParams& p) {
  auto aligned = [](const void* pointer, std::initializer_list<int64_t> strides, int64_t bytes,
                    int64_t element) {
    bool is = reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
    for (int64_t stride : strides) is = is && stride * element % bytes == 0;
    return is;
  };
  const int64_t element = p.value_dtype == DType::kFloat32 ? 4 : 2;
  const DType points = p.query_hw ? p.value_dtype : DType::kFloat32;
  return p.value_dtype != DType::kFloat64 && p.num_points == kSpecializedPoints &&
         p.points_dtype == points && p.weights_dtype == p.value_dtype &&
         aligned(p.value, {p.value_stride_b, p.value_stride_s}, 16, element) &&
         aligned(p.points, {p.points_stride_b, p.points_stride_q}, p.query_hw ? 2 * element : 8,
                 p.query_hw ? element : 4) &&
         aligned(p.grad_out, {p.grad_out_stride_b, p.grad_out_stride_q}, 16, element);
}

// Calls run(type of the value, D, L, whether queries lie on grids) for a specialized kernel;
// returns whether there is one.
template <typename Run>
bool dispatch_specialized(const MsDeformAttnParams& p, Run&& run) {
  if (!is_specializable(p)) return false;
  bool found = false;
  auto with_type = [&](auto type) {
    dispatch<VITADAPTER_HEAD_CHANNELS>(p.channels, [&](auto D) {
      dispatch<VITADAPTER_LEVELS>(p.levels, [&](auto L) {
        dispatch_bool(p.query_hw != nullptr, [&](auto is_grid) { run(type, D, L, is_grid); });
        found = true;
      });
    });
  };
  if (p.value_dtype == DType::kFloat32) with_type(float{});
  if (p.value_dtype == DType::kFloat16) with_type(Half{});
  if (p.value_dtype == DType::kBFloat16) with_type(BFloat16{});
  return found;
}

// Calls run(type of the value, whether queries lie on grids).
template <typename Run>
void dispatch_generic(const MsDeformAttnParams& p, Run&& run) {
  dispatch_bool(p.query_hw != nullptr, [&](auto is_grid) {
    if (p.value_dtype == DType::kFloat32) run(float{}, is_grid);
    if (p.value_dtype == DType::kFloat16) run(Half{}, is_grid);
    if (p.value_dtype == DType::kBFloat16) run(BFloat16{}, is_grid);
    if (p.value_dtype == DType::kFloat64) run(double{}, is_grid);
  });
}

}  // namespace vitadapter::VITADAPTER_ISA
