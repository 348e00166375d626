// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// Where a point of a query lies, what it weighs, and which four pixels it reads: shared by the
// forward and backward kernels, specialized and generic, of both entry points.
#pragma once

#include "ms_deform_attn/launch_cuda.cuh"

namespace vitadapter::VITADAPTER_ISA {

// The two pixels of one axis that a coordinate lies between, moved so that both are in the map:
// weights follow their pixel, and are 0 for a pixel outside. slope: d weight / d coordinate.
template <typename C>
struct Axis {
  int first;
  C weight[2], slope[2];
  int cell;    // 0 ... size: between which pixels it lies; -1 where it reads nothing
  C fraction;  // within the cell
};

template <typename C>
__device__ __forceinline__ Axis<C> find_pixels(C x, int size) {
  Axis<C> axis;
  // NaN compares false. -2 lies between two pixels that are both outside.
  x = x > C(-1) && x < C(size) ? x : C(-2);
  const C low = floor(x);
  const int x0 = static_cast<int>(low);
  const bool has_near = static_cast<unsigned>(x0) < static_cast<unsigned>(size);
  const bool has_far = static_cast<unsigned>(x0 + 1) < static_cast<unsigned>(size);
  axis.fraction = x - low;
  const C near = has_near ? C(1) - axis.fraction : C(0), far = has_far ? axis.fraction : C(0);
  const C near_slope = has_near ? C(-1) : C(0), far_slope = has_far ? C(1) : C(0);
  axis.cell = x0 + 1;  // -2 becomes -1
  axis.first = max(min(x0, size - 2), 0);
  const bool is_before = x0<axis.first, is_after = x0> axis.first;
  axis.weight[0] = is_before ? far : is_after ? C(0) : near;
  axis.weight[1] = is_before ? C(0) : is_after ? near : far;
  axis.slope[0] = is_before ? far_slope : is_after ? C(0) : near_slope;
  axis.slope[1] = is_before ? C(0) : is_after ? near_slope : far_slope;
  return axis;
}

struct Query {
  int index;
  bool is_valid;
  float center_x, center_y;
};

// Neighboring slots of a block are neighbors on the query grid: a tile of 8 x 8 queries reads a
// quarter of what 64 in a row read (B extractor at 1024: 27 MB against 97 MB of 187 raw).
template <bool kGrid, int kSlots>
struct QueryTile {
  static constexpr int kWidth = kSlots >= 128 ? 16 : kSlots >= 32 ? 8 : 4;
  static constexpr int kHeight = kSlots / kWidth;

  static __device__ __forceinline__ Query find(const KernelParams& p, int tile, int slot) {
    if (!kGrid) {
      const int index = tile * kSlots + slot;
      return {min(index, p.queries - 1), index < p.queries, 0.f, 0.f};
    }
    int g = 0;
    while (g + 1 < p.query_grids && tile >= p.grid[g + 1].first_tile) ++g;
    const QueryGrid& grid = p.grid[g];
    tile -= grid.first_tile;
    const int row = grid.tiles_across.divide(tile);
    const int x =
        (tile - row * static_cast<int>(grid.tiles_across.divisor)) * kWidth + slot % kWidth;
    const int y = row * kHeight + slot / kWidth;
    const bool is_valid = x < grid.w && y < grid.h;
    const int index = grid.first_query + (is_valid ? y * grid.w + x : 0);
    return {index, is_valid, (x + 0.5f) * grid.inverse_w, (y + 0.5f) * grid.inverse_h};
  }
};

template <int kLanes, typename V>
__device__ __forceinline__ V group_sum(V value) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2)
    value += __shfl_xor_sync(0xffffffffu, value, step);
  return value;
}

template <int kLanes>
__device__ __forceinline__ float group_max(float value) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2)
    value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, step));
  return value;
}

// D / 8 lanes share a query of one head; lane i holds channels 8 i ... 8 i + 7 and owns the points
// i, i + kLanes, ...: it alone does their arithmetic.
template <typename T, int D, int L, bool kGrid>
struct Group {
  static constexpr int P = kSpecializedPoints, LP = L * P, kLanes = D / 8;
  static constexpr int kOwned = (LP + kLanes - 1) / kLanes;
  static constexpr int kSlots = kThreads / kLanes;
  using Tile = QueryTile<kGrid, kSlots>;
  using PointType = std::conditional_t<kGrid, T, float>;

  const int lane = threadIdx.x % kLanes, head = blockIdx.x;
  const int batch;
  const Query query;
  float attention[kOwned];
  Axis<float> x[kOwned], y[kOwned];

  __device__ __forceinline__ explicit Group(const KernelParams& p)
      : batch(p.first_batch + blockIdx.z),
        query(Tile::find(p, p.first_tile + blockIdx.y, threadIdx.x / kLanes)) {
    const T* weights = static_cast<const T*>(p.weights) + batch * p.weights_stride_b +
                       query.index * p.weights_stride_q + head * LP;
#pragma unroll
    for (int i = 0; i < kOwned; ++i) {
      const int k = lane + i * kLanes;
      attention[i] = k < LP ? to_float_device(weights[k]) : kGrid ? -INFINITY : 0.f;
    }
    if (kGrid) softmax();
    const PointType* points = static_cast<const PointType*>(p.points) + batch * p.points_stride_b +
                              query.index * p.points_stride_q + head * (2 * LP);
#pragma unroll
    for (int i = 0; i < kOwned; ++i) {
      const int k = lane + i * kLanes;
      const Level& level = p.level[level_of(k)];
      float at[2] = {0.f, 0.f};
      if (k < LP) load2(points + 2 * k, at);
      const float w = level.w, h = level.h;
      const float px = kGrid ? fmaf(query.center_x, w, at[0] - 0.5f) : fmaf(at[0], w, -0.5f);
      const float py = kGrid ? fmaf(query.center_y, h, at[1] - 0.5f) : fmaf(at[1], h, -0.5f);
      x[i] = find_pixels(px, level.w);
      y[i] = find_pixels(py, level.h);
    }
  }

  static __device__ __forceinline__ int level_of(int k) { return L == 1 ? 0 : min(k / P, L - 1); }

  static __device__ __forceinline__ float to_float_device(T value) {
    if constexpr (sizeof(T) == 2) {
      float both[2];
      unpack2(T{}, value.bits, both);
      return both[0];
    } else {
      return value;
    }
  }

  // Index of the upper left of the four pixels that owned point i reads.
  __device__ __forceinline__ int pixel(const KernelParams& p, int i) const {
    const Level& level = p.level[level_of(lane + i * kLanes)];
    return level.start + y[i].first * level.w + x[i].first;
  }

  // The value of owned slot i in the lane that owns point k.
  template <typename V>
  static __device__ __forceinline__ V from_owner(V value, int k) {
    return __shfl_sync(0xffffffffu, value, k % kLanes, kLanes);
  }

 private:
  __device__ __forceinline__ void softmax() {
    float peak = attention[0];
#pragma unroll
    for (int i = 1; i < kOwned; ++i) peak = fmaxf(peak, attention[i]);
    peak = group_max<kLanes>(peak);
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < kOwned; ++i) {
      attention[i] = exp2_of((attention[i] - peak) * 1.44269504f);
      sum += attention[i];
    }
    const float inverse = quotient_of(1.f, group_sum<kLanes>(sum));
#pragma unroll
    for (int i = 0; i < kOwned; ++i) attention[i] *= inverse;
  }
};

// Any D, L, P and mixture of dtypes: eight lanes share a query of one head and go through its
// points together, each with every eighth channel.
constexpr int kGenericLanes = 8;

template <typename C>
__device__ __forceinline__ C load_any(DType dtype, const void* base, int64_t at) {
  switch (dtype) {
    case DType::kFloat32:
      return static_cast<C>(static_cast<const float*>(base)[at]);
    case DType::kFloat16:
      return static_cast<C>(to_float(static_cast<const Half*>(base)[at]));
    case DType::kBFloat16:
      return static_cast<C>(to_float(static_cast<const BFloat16*>(base)[at]));
    default:
      return static_cast<C>(static_cast<const double*>(base)[at]);
  }
}

template <typename C>
__device__ __forceinline__ void store_any(DType dtype, void* base, int64_t at, C value) {
  switch (dtype) {
    case DType::kFloat32:
      static_cast<float*>(base)[at] = static_cast<float>(value);
      break;
    case DType::kFloat16:
      static_cast<Half*>(base)[at] = to_half(static_cast<float>(value));
      break;
    case DType::kBFloat16:
      static_cast<BFloat16*>(base)[at] = to_bfloat16(static_cast<float>(value));
      break;
    default:
      static_cast<double*>(base)[at] = static_cast<double>(value);
  }
}

template <typename C, bool kGrid>
struct GenericGroup {
  static constexpr int kSlots = kThreads / kGenericLanes;
  using Tile = QueryTile<kGrid, kSlots>;

  const KernelParams& p;
  const int lane = threadIdx.x % kGenericLanes, head = blockIdx.x;
  const int batch;
  const Query query;
  const int per_query;
  C peak = 0, inverse = 1;

  __device__ explicit GenericGroup(const KernelParams& params)
      : p(params),
        batch(p.first_batch + blockIdx.z),
        query(Tile::find(p, p.first_tile + blockIdx.y, threadIdx.x / kGenericLanes)),
        per_query(p.levels * p.num_points) {
    if (!kGrid || per_query == 0) return;
    peak = weight(0);
    for (int k = 1; k < per_query; ++k) peak = weight(k) > peak ? weight(k) : peak;
    C sum = 0;
    for (int k = 0; k < per_query; ++k) sum += exp(weight(k) - peak);
    inverse = 1 / sum;
  }

  __device__ C weight(int k) const {
    return load_any<C>(p.weights_dtype, p.weights,
                       batch * p.weights_stride_b + query.index * p.weights_stride_q +
                           static_cast<int64_t>(head) * per_query + k);
  }

  __device__ C attention(int k) const {
    return kGrid ? exp(weight(k) - peak) * inverse : weight(k);
  }

  // Where point k lies, in pixels along one axis of its level (0: x).
  __device__ C position(int k, int axis) const {
    const Level& level = p.level[k / p.num_points];
    const C at = load_any<C>(p.points_dtype, p.points,
                             batch * p.points_stride_b + query.index * p.points_stride_q +
                                 2 * (static_cast<int64_t>(head) * per_query + k) + axis);
    const C size = axis == 0 ? level.w : level.h;
    if (!kGrid) return at * size - C(0.5);
    // Exact in double: a float center is off by the rounding of 1 / w.
    int g = 0;
    while (g + 1 < p.query_grids && query.index >= p.grid[g + 1].first_query) ++g;
    const int inside = query.index - p.grid[g].first_query, w = p.grid[g].w;
    const C numerator = C(2 * (axis == 0 ? inside % w : inside / w) + 1) * size;
    return numerator / C(2 * (axis == 0 ? w : p.grid[g].h)) - C(0.5) + at;
  }
};

// What backward leaves of a point, for the gradient of the value.
template <typename C>
struct alignas(16) Record {
  C attention, x, y;  // x, y: within the cell
  int query;          // of its image
};

}  // namespace vitadapter::VITADAPTER_ISA
