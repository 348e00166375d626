// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// The gradient of the value from the records that backward left: records are moved next to those of
// their cell, then every pixel sums its four cells in registers and is written once.
#include "ms_deform_attn/points_cuda.cuh"

namespace vitadapter::VITADAPTER_ISA {
namespace {

struct PlaceParams {
  const int *cell_of_point, *rank_of_point, *points_in_cell, *cell_end;
  const void* records;
  void* sorted_records;
  int64_t count;
  int heads, cells, points_per_image, per_query;
};

// Moves the record of every point to its place among those of its cell. A thread is a point.
// Registers, at most: 32.
template <typename C>
__global__ void __launch_bounds__(kThreads) place_kernel(const __grid_constant__ PlaceParams p) {
  const int64_t point = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (point >= p.count) return;
  const int cell = p.cell_of_point[point];
  if (cell < 0) return;
  const int batch = static_cast<int>(point / p.points_per_image);
  const int head = static_cast<int>(point / p.per_query % p.heads);
  const int64_t counter = (static_cast<int64_t>(batch) * p.heads + head) * p.cells + cell;
  const int64_t first = p.cell_end[counter] - p.points_in_cell[counter];
  static_cast<Record<C>*>(p.sorted_records)[first + p.rank_of_point[point]] =
      static_cast<const Record<C>*>(p.records)[point];
}

struct GatherParams {
  const int *points_in_cell, *cell_end;
  const void *sorted_records, *grad_out;
  void* grad_value;
  int64_t grad_out_stride_b, grad_out_stride_q;
  int heads, channels, tokens, levels, cells, first_slot_block, first_batch;
  Level level[kMaxLevels];
};

// Calls add(weight, query) for every record that touches a pixel, in the order of the records.
template <typename C, typename Add>
__device__ __forceinline__ void for_each_touching(const GatherParams& p, int batch, int head,
                                                  int pixel, Add&& add) {
  int l = 0;
  while (l + 1 < p.levels && pixel >= p.level[l + 1].start) ++l;
  const Level& level = p.level[l];
  const int y = (pixel - level.start) / level.w, x = (pixel - level.start) - y * level.w;
  const int64_t first_cell =
      (static_cast<int64_t>(batch) * p.heads + head) * p.cells + level.first_cell;
  const Record<C>* records = static_cast<const Record<C>*>(p.sorted_records);
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
    const bool is_right = corner & 1, is_lower = corner >> 1;
    const int64_t cell = first_cell + (y + is_lower) * (level.w + 1) + x + is_right;
    const int end = p.cell_end[cell];
    for (int at = end - p.points_in_cell[cell]; at < end; ++at) {
      const Record<C> record = records[at];
      // The pixel is the near one of the cells to its right and below.
      const C wx = is_right ? C(1) - record.x : record.x;
      const C wy = is_lower ? C(1) - record.y : record.y;
      add(record.attention * wx * wy, record.query);
    }
  }
}

// D / 8 lanes share a pixel of one head. Registers, at most: 64.
template <typename T, int D>
__global__ void __launch_bounds__(kThreads) gather_kernel(const __grid_constant__ GatherParams p) {
  constexpr int kLanes = D / 8, kPixels = kThreads / kLanes;
  const int pixel = (p.first_slot_block + blockIdx.y) * kPixels + threadIdx.x / kLanes;
  const int head = blockIdx.x, batch = p.first_batch + blockIdx.z;
  if (pixel >= p.tokens) return;
  const int column = head * D + threadIdx.x % kLanes * 8;
  const T* grad_out = static_cast<const T*>(p.grad_out) + batch * p.grad_out_stride_b + column;
  float sum[8] = {};
  for_each_touching<float>(p, batch, head, pixel, [&](float weight, int query) {
    float g[8];
    load8(grad_out + query * p.grad_out_stride_q, g);
#pragma unroll
    for (int d = 0; d < 8; ++d) sum[d] = fmaf(weight, g[d], sum[d]);
  });
  const int64_t row = static_cast<int64_t>(batch) * p.tokens + pixel;
  store8(sum, static_cast<T*>(p.grad_value) + row * p.heads * D + column);
}

// kGenericLanes lanes share a pixel of one head; a lane sums every kGenericLanes-th channel, one at
// a time. Registers, at most: 128.
template <typename T>
__global__ void __launch_bounds__(kThreads, 2)
    generic_gather_kernel(const __grid_constant__ GatherParams p) {
  using C = Compute<T>;
  constexpr int kPixels = kThreads / kGenericLanes;
  const int pixel = (p.first_slot_block + blockIdx.y) * kPixels + threadIdx.x / kGenericLanes;
  const int head = blockIdx.x, batch = p.first_batch + blockIdx.z;
  if (pixel >= p.tokens) return;
  const int64_t row = static_cast<int64_t>(batch) * p.tokens + pixel;
  const int64_t column = static_cast<int64_t>(head) * p.channels;
  const T* grad_out = static_cast<const T*>(p.grad_out) + batch * p.grad_out_stride_b + column;
  T* to = static_cast<T*>(p.grad_value) + row * p.heads * p.channels + column;
  for (int d = threadIdx.x % kGenericLanes; d < p.channels; d += kGenericLanes) {
    C sum = 0;
    for_each_touching<C>(p, batch, head, pixel, [&](C weight, int query) {
      sum += weight * to_float(grad_out[query * p.grad_out_stride_q + d]);
    });
    from_compute(sum, to + d);
  }
}

}  // namespace
}  // namespace vitadapter::VITADAPTER_ISA

namespace vitadapter {

void ms_deform_attn_place_cuda(const MsDeformAttnParams& p) {
  using namespace VITADAPTER_ISA;
  const DeviceGuard guard(p.device);
  int64_t tiles;
  const KernelParams k = kernel_params(p, 1, 1, 1, &tiles);
  const int64_t per_query = p.levels * p.num_points;
  PlaceParams place{p.cell_of_point,
                    p.rank_of_point,
                    p.points_in_cell,
                    p.cell_end,
                    p.records,
                    p.sorted_records,
                    p.batch * p.queries * p.heads * per_query,
                    k.heads,
                    k.cells,
                    static_cast<int>(p.queries * p.heads * per_query),
                    static_cast<int>(per_query)};
  const Grid grid{(place.count + kThreads - 1) / kThreads, 1, 1};
  const auto kernel = p.value_dtype == DType::kFloat64 ? place_kernel<double> : place_kernel<float>;
  launch("ms_deform_attn place", kernel, grid, kThreads, place, p.device, p.stream);
}

void ms_deform_attn_gather_cuda(const MsDeformAttnParams& p) {
  using namespace VITADAPTER_ISA;
  const DeviceGuard guard(p.device);
  int64_t tiles;
  const KernelParams k = kernel_params(p, 1, 1, 1, &tiles);
  GatherParams gather{p.points_in_cell,
                      p.cell_end,
                      p.sorted_records,
                      p.grad_out,
                      p.grad_value,
                      p.grad_out_stride_b,
                      p.grad_out_stride_q,
                      k.heads,
                      k.channels,
                      k.tokens,
                      k.levels,
                      k.cells,
                      0,
                      0,
                      {}};
  for (int l = 0; l < k.levels; ++l) gather.level[l] = k.level[l];
  auto launch_pixels = [&](auto kernel, int lanes) {
    const int64_t pixels = kThreads / lanes, blocks = (p.tokens + pixels - 1) / pixels;
    for (int64_t batch = 0; batch < p.batch; batch += kMaxGridYZ) {
      for (int64_t block = 0; block < blocks; block += kMaxGridYZ) {
        gather.first_batch = static_cast<int>(batch);
        gather.first_slot_block = static_cast<int>(block);
        const Grid grid{p.heads, blocks - block < kMaxGridYZ ? blocks - block : kMaxGridYZ,
                        p.batch - batch < kMaxGridYZ ? p.batch - batch : kMaxGridYZ};
        launch("ms_deform_attn gather", kernel, grid, kThreads, gather, p.device, p.stream);
      }
    }
  };
  const bool done = dispatch_specialized(p, [&](auto type, auto D, auto, auto) {
    launch_pixels(gather_kernel<decltype(type), D()>, D() / 8);
  });
  if (done) return;
  dispatch_generic(p, [&](auto type, auto) {
    launch_pixels(generic_gather_kernel<decltype(type)>, kGenericLanes);
  });
}

}  // namespace vitadapter
