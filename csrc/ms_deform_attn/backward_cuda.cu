// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// Backward on CUDA: gradients of points and weights, and two ways to sum the gradient of the value.
//
// Atomic: every point adds to its four pixels, 16 bytes at a time where the device can, into a
// float32 buffer.
// Records: every point leaves a record in the cell between pixels that it lies in; then each pixel
// gathers from its four cells in registers. No float atomics; with the records of a cell in a fixed
// order the result is the same, bit for bit, in every run.
#include "ms_deform_attn/points_cuda.cuh"

namespace vitadapter::VITADAPTER_ISA {
namespace {

using Sum = MsDeformAttnParams::Sum;

// Files the record of point number `at` of all and counts it in its cell.
template <typename C>
__device__ __forceinline__ void file_record(const KernelParams& p, int64_t at, int batch, int head,
                                            const Level& level, const Axis<C>& x, const Axis<C>& y,
                                            C attention, int query) {
  const bool reads = x.cell >= 0 && y.cell >= 0;
  const int cell = reads ? level.first_cell + y.cell * (level.w + 1) + x.cell : -1;
  p.cell_of_point[at] = cell;
  if (!reads) return;
  int* counter = p.points_in_cell + (static_cast<int64_t>(batch) * p.heads + head) * p.cells + cell;
  p.rank_of_point[at] = atomicAdd(counter, 1);
  static_cast<Record<C>*>(p.records)[at] = {attention, x.fraction, y.fraction, query};
}

// d out / d attention and d out / d position of a point, from the dot products of grad_out with its
// four pixels.
template <typename C>
struct PointGradient {
  C attention, x, y;

  __device__ __forceinline__ PointGradient() : attention(0), x(0), y(0) {}
  __device__ __forceinline__ PointGradient(const C dot[4], const Axis<C>& ax, const Axis<C>& ay,
                                           C weight) {
    const C upper = ax.weight[0] * dot[0] + ax.weight[1] * dot[1];
    const C lower = ax.weight[0] * dot[2] + ax.weight[1] * dot[3];
    attention = ay.weight[0] * upper + ay.weight[1] * lower;
    x = weight * (ax.slope[0] * (ay.weight[0] * dot[0] + ay.weight[1] * dot[2]) +
                  ax.slope[1] * (ay.weight[0] * dot[1] + ay.weight[1] * dot[3]));
    y = weight * (ay.slope[0] * upper + ay.slope[1] * lower);
  }
};

// Blocks of an SM that the registers must allow, the most with which nothing spills on sm_80, sm_90
// and sm_120: where no atomic stands between them, the compiler gathers the loads of many points.
template <typename T, Sum kSum>
constexpr int min_blocks(int D, int L) {
  if (kSum == Sum::kRecords) return L == 1 && D != 16 && sizeof(T) == 2 ? 2 : 1;
  return L > 1 && (D == 16 || D == 128) ? 1 : 2;
}

constexpr int kPointsAtOnce = 2;

// D / 8 lanes share a query of one head, as in the forward pass; the dot products of a point are
// summed over them, and its owner alone turns them into gradients. Registers, at most: 255 with one
// block, 128 with two.
template <typename T, int D, int L, bool kGrid, Sum kSum>
__global__ void __launch_bounds__(kThreads, min_blocks<T, kSum>(D, L))
    points_backward_kernel(const __grid_constant__ KernelParams p) {
  using G = Group<T, D, L, kGrid>;
  const G group(p);
  const bool is_valid = group.query.is_valid;
  const int64_t row = static_cast<int64_t>(group.batch) * p.queries + group.query.index;
  int pixel[G::kOwned];
#pragma unroll
  for (int i = 0; i < G::kOwned; ++i) pixel[i] = group.pixel(p, i);

  if (kSum == Sum::kRecords && p.records && is_valid) {
    // Before the loop: cells and fractions then need no registers in it.
#pragma unroll
    for (int i = 0; i < G::kOwned; ++i) {
      const int k = group.lane + i * G::kLanes;
      if (k >= G::LP) continue;
      file_record(p, (row * p.heads + group.head) * G::LP + k, group.batch, group.head,
                  p.level[G::level_of(k)], group.x[i], group.y[i], group.attention[i],
                  group.query.index);
    }
  }

  const T* grad_out = static_cast<const T*>(p.grad_out) + group.batch * p.grad_out_stride_b +
                      group.query.index * p.grad_out_stride_q + group.head * D;
  float g[8];
  load8(grad_out + group.lane * 8, g);
  // What this lane adds to pixels. Where an atomic adds one float, every kLanes-th channel, so that
  // the lanes of a query add to channels in a row: of their neighbors, each would add to a 32-byte
  // sector of its own.
  const int first_added = has_float4_atomics() ? group.lane * 8 : group.lane;
  float added[8];
#pragma unroll
  for (int i = 0; i < 8; ++i)
    added[i] =
        has_float4_atomics() ? g[i] : G::to_float_device(grad_out[i * G::kLanes + first_added]);
  const T* value = static_cast<const T*>(p.value) + group.batch * p.value_stride_b +
                   group.head * D + group.lane * 8;
  float* grad_value = static_cast<float*>(p.grad_value) +
                      (static_cast<int64_t>(group.batch) * p.tokens * p.heads + group.head) * D +
                      first_added;
  const int64_t dense_row = static_cast<int64_t>(p.heads) * D;
  PointGradient<float> gradient[G::kOwned];

#pragma unroll
  for (int k = 0; k < G::LP; ++k) {
    // Keeps the compiler from loading for all points at once, which it has no registers for.
    if (k > 0 && k % kPointsAtOnce == 0) __syncwarp();
    const Level& level = p.level[k / G::P];
    const int i = k / G::kLanes;
    const int first = G::from_owner(pixel[i], k);
    const int at[4] = {first, first + level.step_x, first + level.step_y,
                       first + level.step_x + level.step_y};
    float dot[4];
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      float channel[8];
      load8(value + static_cast<int64_t>(at[c]) * p.value_stride_s, channel);
      dot[c] = 0.f;
#pragma unroll
      for (int d = 0; d < 8; ++d) dot[c] = fmaf(g[d], channel[d], dot[c]);
      dot[c] = group_sum<G::kLanes>(dot[c]);
    }
    if (group.lane == k % G::kLanes)
      gradient[i] = PointGradient<float>(dot, group.x[i], group.y[i], group.attention[i]);
    if constexpr (kSum == Sum::kAtomic) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const float w = G::from_owner(
            group.attention[i] * group.x[i].weight[c & 1] * group.y[i].weight[c >> 1], k);
        float terms[8];
#pragma unroll
        for (int d = 0; d < 8; ++d) terms[d] = w * added[d];
        // A pixel outside the map, or past the last query, has nothing to add.
        add8_if<G::kLanes>(w != 0.f && is_valid, grad_value + at[c] * dense_row, terms);
      }
    }
  }

  float mean = 0.f;
  if (kGrid) {
#pragma unroll
    for (int i = 0; i < G::kOwned; ++i) mean += group.attention[i] * gradient[i].attention;
    mean = group_sum<G::kLanes>(mean);
  }
  if (!is_valid) return;
#pragma unroll
  for (int i = 0; i < G::kOwned; ++i) {
    const int k = group.lane + i * G::kLanes;
    if (k >= G::LP) continue;
    const Level& level = p.level[G::level_of(k)];
    const int64_t at = (row * p.heads + group.head) * G::LP + k;
    if (p.grad_weights) {
      const float raw = gradient[i].attention;
      from_compute(kGrid ? group.attention[i] * (raw - mean) : raw,
                   static_cast<T*>(p.grad_weights) + at);
    }
    if (p.grad_points) {
      const float scale_x = kGrid ? 1.f : level.w, scale_y = kGrid ? 1.f : level.h;
      store2(scale_x * gradient[i].x, scale_y * gradient[i].y,
             static_cast<typename G::PointType*>(p.grad_points) + 2 * at);
    }
  }
}

// kGenericLanes lanes share a query of one head and divide its channels; lane 0 writes the
// gradients of its points, one after another. Registers, at most: 128.
template <typename T, bool kGrid, Sum kSum>
__global__ void __launch_bounds__(kThreads, 2)
    generic_points_backward_kernel(const __grid_constant__ KernelParams p) {
  using C = Compute<T>;
  const GenericGroup<C, kGrid> group(p);
  const int D = p.channels;
  const int64_t row = static_cast<int64_t>(group.batch) * p.queries + group.query.index;
  const int64_t head_row = static_cast<int64_t>(group.head) * D;
  const T* g = static_cast<const T*>(p.grad_out) + group.batch * p.grad_out_stride_b +
               group.query.index * p.grad_out_stride_q + head_row;
  const T* value = static_cast<const T*>(p.value) + group.batch * p.value_stride_b + head_row;
  C* grad_value = static_cast<C*>(p.grad_value) +
                  static_cast<int64_t>(group.batch) * p.tokens * p.heads * D + head_row;
  auto gradient_of = [&](int k, const Axis<C>& x, const Axis<C>& y, C attention) {
    const Level& level = p.level[k / p.num_points];
    const int pixel = level.start + y.first * level.w + x.first;
    C dot[4] = {};
    for (int d = group.lane; d < D; d += kGenericLanes) {
      for (int c = 0; c < 4; ++c) {
        const int64_t at = pixel + (c & 1) * level.step_x + (c >> 1) * level.step_y;
        dot[c] += to_float(g[d]) * to_float(value[at * p.value_stride_s + d]);
      }
    }
    for (C& sum : dot) sum = group_sum<kGenericLanes>(sum);
    return PointGradient<C>(dot, x, y, attention);
  };
  auto for_each_point = [&](auto&& run) {
    for (int k = 0; k < group.per_query; ++k) {
      const Level& level = p.level[k / p.num_points];
      const Axis<C> x = find_pixels(group.position(k, 0), level.w);
      const Axis<C> y = find_pixels(group.position(k, 1), level.h);
      const C attention = group.attention(k);
      run(k, level, x, y, attention, gradient_of(k, x, y, attention));
    }
  };
  C mean = 0;
  if (kGrid) {
    for_each_point(
        [&](int, const Level&, const Axis<C>&, const Axis<C>&, C attention,
            const PointGradient<C>& gradient) { mean += attention * gradient.attention; });
  }
  for_each_point([&](int k, const Level& level, const Axis<C>& x, const Axis<C>& y, C attention,
                     const PointGradient<C>& gradient) {
    if (!group.query.is_valid) return;
    if constexpr (kSum == Sum::kAtomic) {
      const int pixel = level.start + y.first * level.w + x.first;
      for (int c = 0; c < 4; ++c) {
        const int64_t at = pixel + (c & 1) * level.step_x + (c >> 1) * level.step_y;
        const C w = attention * x.weight[c & 1] * y.weight[c >> 1];
        if (w == C(0)) continue;
        for (int d = group.lane; d < D; d += kGenericLanes)
          atomicAdd(grad_value + at * p.heads * D + d, static_cast<C>(w * to_float(g[d])));
      }
    }
    if (group.lane != 0) return;
    const int64_t at = (row * p.heads + group.head) * group.per_query + k;
    if (p.grad_weights) {
      const C raw = gradient.attention;
      store_any(p.weights_dtype, p.grad_weights, at, kGrid ? attention * (raw - mean) : raw);
    }
    if (p.grad_points) {
      const C scale_x = kGrid ? 1 : level.w, scale_y = kGrid ? 1 : level.h;
      store_any(p.points_dtype, p.grad_points, 2 * at, scale_x * gradient.x);
      store_any(p.points_dtype, p.grad_points, 2 * at + 1, scale_y * gradient.y);
    }
    if (kSum == Sum::kRecords && p.records)
      file_record(p, at, group.batch, group.head, level, x, y, attention, group.query.index);
  });
}

template <typename Run>
void dispatch_sum(Sum sum, Run&& run) {
  if (sum == Sum::kAtomic)
    run(std::integral_constant<Sum, Sum::kAtomic>{});
  else
    run(std::integral_constant<Sum, Sum::kRecords>{});
}

}  // namespace
}  // namespace vitadapter::VITADAPTER_ISA

namespace vitadapter {

void ms_deform_attn_points_backward_cuda(const MsDeformAttnParams& p) {
  using namespace VITADAPTER_ISA;
  const DeviceGuard guard(p.device);
  int64_t tiles;
  dispatch_sum(p.sum, [&](auto sum) {
    bool done = false;
    dispatch_specialized(p, [&](auto type, auto D, auto L, auto is_grid) {
      using T = decltype(type);
      if constexpr (has_specialized_backward(sizeof(T), D(), L())) {
        using G = Group<T, D(), L(), is_grid()>;
        const KernelParams k = tiled_params<typename G::Tile>(p, G::kSlots, &tiles);
        launch_tiles("ms_deform_attn backward",
                     points_backward_kernel<T, D(), L(), is_grid(), sum()>, k, tiles, p);
        done = true;
      }
    });
    if (done) return;
    dispatch_generic(p, [&](auto type, auto is_grid) {
      using T = decltype(type);
      using G = GenericGroup<Compute<T>, is_grid()>;
      const KernelParams k = tiled_params<typename G::Tile>(p, G::kSlots, &tiles);
      launch_tiles("ms_deform_attn generic backward",
                   generic_points_backward_kernel<T, is_grid(), sum()>, k, tiles, p);
    });
  });
}

}  // namespace vitadapter
