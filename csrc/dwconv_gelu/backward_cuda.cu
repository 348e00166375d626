// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// Backward: the gradient of what goes into GELU, recomputed, is written in the dtype of the tokens;
// from it follow the gradient of the tokens, by the same kernel with turned taps, and one partial
// sum of the weight's and bias's gradient for each tile. No atomics: every run gives the same bits.
#include "dwconv_gelu/rows_cuda.cuh"

namespace vitadapter::VITADAPTER_ISA::dwconv_gelu {
namespace {

// Neighboring lanes that share a pixel: 64 bytes of it.
template <int kVec>
constexpr int kPixelLanes = kVec > 1 ? 4 : 32;

// A thread is kVec channels of kWeightRows pixels in each of some columns; a block is kPixelLanes
// such neighbors and kWeightColumns columns. A row of tokens meets the gradients of the three rows
// it is added to; ten sums for every channel stay in registers, then meet over lanes and warps in a
// fixed order. Registers, at most: 168.
template <typename T, int kVec>
__global__ void __launch_bounds__(kThreads, 3)
    weight_gradient_kernel(const __grid_constant__ KernelParams p) {
  using C = Compute<T>;
  constexpr int kLanes = kPixelLanes<kVec>, kSlots = kThreads / kLanes;
  constexpr int kSums = kTaps + 1, kWarps = kThreads / 32;
  const Tile tile(p, blockIdx.x);
  const int w = tile.grid.w, h = tile.grid.h, batch = p.first_batch + blockIdx.y;
  const int lane = threadIdx.x % kLanes, vector = blockIdx.z * kLanes + lane, c = vector * kVec;
  const int y_begin = tile.row * kWeightRows, y_end = min(y_begin + kWeightRows, h);
  const bool is_channel = vector < p.vectors;

  C sum[kSums][kVec] = {};
  for (int slot = threadIdx.x / kLanes; slot < kWeightColumns; slot += kSlots) {
    const int x = tile.column * kWeightColumns + slot;
    if (x >= w || !is_channel) break;
    const bool has_left = x > 0, has_right = x + 1 < w;
    const int first = tile.grid.first_token + y_begin * w + x;
    const T* from = static_cast<const T*>(p.tokens) + batch * p.tokens_stride_b +
                    (first - w) * p.tokens_stride_n + c;
    const T* gradient = static_cast<const T*>(p.grad_out) + batch * p.grad_out_stride_b +
                        first * p.grad_out_stride_n + c;
    C above[kVec] = {}, here[kVec] = {}, below[kVec];
    for (int y = y_begin - 1; y <= y_end; ++y) {
      load_or_zero<T, kVec>(y + 1 < y_end, gradient, below);
      gradient += w * p.grad_out_stride_n;
      if (y >= 0 && y < h) {
#pragma unroll
        for (int dx = 0; dx < 3; ++dx) {
          C pixel[kVec];
          load_or_zero<T, kVec>(dx == 1 || (dx == 0 ? has_left : has_right),
                                from + (dx - 1) * p.tokens_stride_n, pixel);
#pragma unroll
          for (int i = 0; i < kVec; ++i) {
            sum[dx][i] += pixel[i] * below[i];
            sum[3 + dx][i] += pixel[i] * here[i];
            sum[6 + dx][i] += pixel[i] * above[i];
          }
        }
      }
      from += w * p.tokens_stride_n;
#pragma unroll
      for (int i = 0; i < kVec; ++i) {
        sum[kTaps][i] += below[i];
        above[i] = here[i], here[i] = below[i];
      }
    }
  }

  __shared__ C shared[kWarps][kSums][kLanes * kVec];
#pragma unroll
  for (int k = 0; k < kSums; ++k) {
#pragma unroll
    for (int i = 0; i < kVec; ++i) {
      C total = sum[k][i];
#pragma unroll
      for (int step = kLanes; step < 32; step *= 2)
        total += __shfl_xor_sync(0xffffffffu, total, step);
      if (threadIdx.x % 32 < kLanes) shared[threadIdx.x / 32][k][lane * kVec + i] = total;
    }
  }
  __syncthreads();
  const int64_t row = (static_cast<int64_t>(batch) * p.tiles + blockIdx.x) * kSums;
  for (int at = threadIdx.x; at < kSums * kLanes * kVec; at += kThreads) {
    const int k = at / (kLanes * kVec), i = at % (kLanes * kVec);
    const int channel = blockIdx.z * kLanes * kVec + i;
    if (channel >= p.channels) continue;
    C total = 0;
    for (int warp = 0; warp < kWarps; ++warp) total += shared[warp][k][i];
    static_cast<C*>(p.partial_sums)[(row + k) * p.channels + channel] = total;
  }
}

}  // namespace
}  // namespace vitadapter::VITADAPTER_ISA::dwconv_gelu

namespace vitadapter {

void dwconv_gelu_backward_cuda(const DwconvGeluParams& p) {
  using namespace VITADAPTER_ISA;
  using namespace VITADAPTER_ISA::dwconv_gelu;
  const DeviceGuard guard(p.device);
  dispatch_vector(p, [&](auto type, auto vec) {
    using T = decltype(type);
    KernelParams k = kernel_params(p, vec, kRows, 0);
    k.out = p.grad_sum;
    launch_tiles("dwconv_gelu backward of GELU", convolve_kernel<T, vec(), Then::kSlope>, k, 1, p);
    if (p.grad_tokens) {
      KernelParams turned = k;
      turned.tokens = p.grad_sum, turned.bias = nullptr, turned.out = p.grad_tokens;
      turned.tokens_stride_b = p.num_tokens * p.channels, turned.tokens_stride_n = p.channels;
      launch_tiles("dwconv_gelu backward of tokens", convolve_kernel<T, vec(), Then::kNothing>,
                   turned, 1, p);
    }
    if (p.partial_sums) {
      KernelParams tiles = kernel_params(p, vec, kWeightRows, kWeightColumns);
      VITADAPTER_CHECK(p.batch * tiles.tiles == p.tiles,
                       "dwconv_gelu: partial sums for another number of tiles");
      tiles.grad_out = p.grad_sum;
      tiles.grad_out_stride_b = p.num_tokens * p.channels, tiles.grad_out_stride_n = p.channels;
      constexpr int kLanes = kPixelLanes<vec()>;
      launch_tiles("dwconv_gelu backward of weight", weight_gradient_kernel<T, vec()>, tiles,
                   (tiles.vectors + kLanes - 1) / kLanes, p);
    }
  });
}

}  // namespace vitadapter
