// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// Forward on CUDA. A block is a tile of neighboring queries of one head; D / 8 lanes share a query,
// each with eight channels and 16-byte reads. Branch-free, no shared memory, no device-side sizes.
#include "ms_deform_attn/points_cuda.cuh"

namespace vitadapter::VITADAPTER_ISA {
namespace {

// D / 8 lanes share a query of one head, a block is a tile of queries (see Group): each lane sums
// eight channels over all points. At D = 32, L = 1 in bf16 on sm_90 a warp executes 532
// instructions for its eight queries (480 with locations). Registers, at most: 80, and 48 for that
// shape.
template <typename T, int D, int L, bool kGrid>
__global__ void __launch_bounds__(kThreads) forward_kernel(const __grid_constant__ KernelParams p) {
  using G = Group<T, D, L, kGrid>;
  const G group(p);
  float weight[G::kOwned][4];
  int pixel[G::kOwned];
#pragma unroll
  for (int i = 0; i < G::kOwned; ++i) {
    const float upper = group.attention[i] * group.y[i].weight[0];
    const float lower = group.attention[i] * group.y[i].weight[1];
    weight[i][0] = group.x[i].weight[0] * upper;
    weight[i][1] = group.x[i].weight[1] * upper;
    weight[i][2] = group.x[i].weight[0] * lower;
    weight[i][3] = group.x[i].weight[1] * lower;
    pixel[i] = group.pixel(p, i);
  }
  const T* value = static_cast<const T*>(p.value) + group.batch * p.value_stride_b +
                   group.head * D + group.lane * 8;
  float sum[8] = {};
#pragma unroll
  for (int k = 0; k < G::LP; ++k) {
    const Level& level = p.level[k / G::P];
    const int i = k / G::kLanes;
    const int64_t right = static_cast<int64_t>(level.step_x) * p.value_stride_s;
    const int64_t down = static_cast<int64_t>(level.step_y) * p.value_stride_s;
    const T* from = value + static_cast<int64_t>(G::from_owner(pixel[i], k)) * p.value_stride_s;
    const T* corner[4] = {from, from + right, from + down, from + down + right};
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const float w = G::from_owner(weight[i][c], k);
      float channel[8];
      load8(corner[c], channel);
#pragma unroll
      for (int d = 0; d < 8; ++d) sum[d] = fmaf(w, channel[d], sum[d]);
    }
  }
  if (!group.query.is_valid) return;
  const int64_t row = static_cast<int64_t>(group.batch) * p.queries + group.query.index;
  store8(sum, static_cast<T*>(p.out) + (row * p.heads + group.head) * D + group.lane * 8);
}

// kGenericLanes lanes share a query of one head; a lane sums every kGenericLanes-th channel, one at
// a time, and does the arithmetic of all points for each. Registers, at most: 64.
template <typename T, bool kGrid>
__global__ void __launch_bounds__(kThreads)
    generic_forward_kernel(const __grid_constant__ KernelParams p) {
  using C = Compute<T>;
  const GenericGroup<C, kGrid> group(p);
  if (!group.query.is_valid) return;
  const int64_t row = static_cast<int64_t>(group.batch) * p.queries + group.query.index;
  T* out = static_cast<T*>(p.out) + (row * p.heads + group.head) * p.channels;
  const T* value = static_cast<const T*>(p.value) + group.batch * p.value_stride_b +
                   static_cast<int64_t>(group.head) * p.channels;
  for (int d = group.lane; d < p.channels; d += kGenericLanes) {
    C sum = 0;
    for (int k = 0; k < group.per_query; ++k) {
      const Level& level = p.level[k / p.num_points];
      const Axis<C> x = find_pixels(group.position(k, 0), level.w);
      const Axis<C> y = find_pixels(group.position(k, 1), level.h);
      const int pixel = level.start + y.first * level.w + x.first;
      C sample = 0;
      for (int c = 0; c < 4; ++c) {
        const int64_t at = pixel + (c & 1) * level.step_x + (c >> 1) * level.step_y;
        sample += x.weight[c & 1] * y.weight[c >> 1] * to_float(value[at * p.value_stride_s + d]);
      }
      sum += group.attention(k) * sample;
    }
    from_compute(sum, out + d);
  }
}

}  // namespace

}  // namespace vitadapter::VITADAPTER_ISA

namespace vitadapter {

void ms_deform_attn_forward_cuda(const MsDeformAttnParams& p) {
  using namespace VITADAPTER_ISA;
  const DeviceGuard guard(p.device);
  int64_t tiles;
  const bool done = dispatch_specialized(p, [&](auto type, auto D, auto L, auto is_grid) {
    using T = decltype(type);
    using G = Group<T, D(), L(), is_grid()>;
    const KernelParams k = tiled_params<typename G::Tile>(p, G::kSlots, &tiles);
    launch_tiles("ms_deform_attn forward", forward_kernel<T, D(), L(), is_grid()>, k, tiles, p);
  });
  if (done) return;
  dispatch_generic(p, [&](auto type, auto is_grid) {
    using T = decltype(type);
    using G = GenericGroup<Compute<T>, is_grid()>;
    const KernelParams k = tiled_params<typename G::Tile>(p, G::kSlots, &tiles);
    launch_tiles("ms_deform_attn generic forward", generic_forward_kernel<T, is_grid()>, k, tiles,
                 p);
  });
}

}  // namespace vitadapter
