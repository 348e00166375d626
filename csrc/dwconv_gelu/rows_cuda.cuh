// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// What the kernels are told, some channels of a pixel in registers, and the kernel that convolves:
// forward, the gradient of what goes into GELU, and that of the tokens are one body.
#pragma once

#include "common/check.h"
#include "dwconv_gelu/gelu_cuda.cuh"
#include "dwconv_gelu/params.h"

// A namespace of its own: names of two ops that mean different things must not meet in the linker.
namespace vitadapter::VITADAPTER_ISA::dwconv_gelu {

constexpr int kThreads = 128;
constexpr int kMaxGrids = 16;

struct TokenGrid {
  int h, w, first_token, first_tile, tiles_across;
};

struct KernelParams {
  const void *tokens, *weight, *bias, *grad_out;
  void *out, *partial_sums;
  int64_t tokens_stride_b, tokens_stride_n, grad_out_stride_b, grad_out_stride_n;
  int num_tokens, channels, vectors;  // vectors: of channels, in a pixel
  int grids, tiles, first_batch;      // tiles: of one image
  TokenGrid grid[kMaxGrids];
};

struct Tile {
  TokenGrid grid;
  int row, column;  // of tiles

  __device__ __forceinline__ Tile(const KernelParams& p, int index) {
    int g = 0;
    while (g + 1 < p.grids && index >= p.grid[g + 1].first_tile) ++g;
    grid = p.grid[g];
    index -= grid.first_tile;
    row = index / grid.tiles_across;
    column = index - row * grid.tiles_across;
  }
};

// kVec neighboring channels, 16 bytes of them or one.
template <typename T, int kVec>
__device__ __forceinline__ void load(const T* from, Compute<T> to[kVec]) {
  if constexpr (kVec == 8) {
    load8(from, to);
  } else if constexpr (kVec == 4) {
    const float4 four = __ldg(reinterpret_cast<const float4*>(from));
    to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
  } else {
    to[0] = to_float(*from);
  }
}

template <typename T, int kVec>
__device__ __forceinline__ void load_or_zero(bool is_inside, const T* from, Compute<T> to[kVec]) {
  if (is_inside) return load<T, kVec>(from, to);
#pragma unroll
  for (int i = 0; i < kVec; ++i) to[i] = 0;
}

// Makes the compiler keep a number as it is: it would widen packed taps again for every row, a
// fifth of all instructions.
__device__ __forceinline__ void keep(float& number) {
#ifdef __CUDA_ARCH__
  asm("" : "+f"(number));
#else
  (void)number;
#endif
}
__device__ __forceinline__ void keep(double&) {}

// What becomes of the sums of pixels and taps: GELU; their gradient, from that of GELU; or, with
// the kernel turned by half a turn, the gradient of the tokens.
enum class Then { kGelu, kSlope, kNothing };

constexpr int kRows = 8;

// A thread is kVec channels of a column of kRows pixels, and runs down the rows: a row is added to
// the three sums it belongs to, with all taps in registers. Neighboring threads are neighbors in
// memory, so a warp reads 512 bytes at once, three times from L1. Registers, at most: 168.
template <typename T, int kVec, Then kThen>
__global__ void __launch_bounds__(kThreads, 3)
    convolve_kernel(const __grid_constant__ KernelParams p) {
  using C = Compute<T>;
  const Tile tile(p, blockIdx.x);
  const int w = tile.grid.w, h = tile.grid.h;
  const int vector = tile.column * kThreads + threadIdx.x;
  const int x = vector / p.vectors, c = (vector - x * p.vectors) * kVec;
  if (x >= w) return;

  C tap[kTaps][kVec], bias[kVec] = {};
#pragma unroll
  for (int k = 0; k < kTaps; ++k) {
    C part[kVec];
    load<T, kVec>(static_cast<const T*>(p.weight) + static_cast<int64_t>(c) * kTaps + k * kVec,
                  part);
#pragma unroll
    for (int i = 0; i < kVec; ++i) {
      const int at = k * kVec + i, t = at % kTaps;
      keep(part[i]);
      tap[kThen == Then::kNothing ? kTaps - 1 - t : t][at / kTaps] = part[i];
    }
  }
  if (p.bias) load<T, kVec>(static_cast<const T*>(p.bias) + c, bias);

  const int batch = p.first_batch + blockIdx.y;
  const int y_begin = tile.row * kRows, y_end = min(y_begin + kRows, h);
  const int first = tile.grid.first_token + y_begin * w + x;
  const bool has_left = x > 0, has_right = x + 1 < w;
  const T* from = static_cast<const T*>(p.tokens) + batch * p.tokens_stride_b +
                  (first - w) * p.tokens_stride_n + c;
  const T* grad_out = static_cast<const T*>(p.grad_out) + batch * p.grad_out_stride_b +
                      first * p.grad_out_stride_n + c;
  T* to = static_cast<T*>(p.out) +
          (static_cast<int64_t>(batch) * p.num_tokens + first) * p.channels + c;
  C above[kVec], here[kVec];
#pragma unroll
  for (int i = 0; i < kVec; ++i) here[i] = bias[i];

#pragma unroll 3
  for (int y = y_begin - 1; y <= y_end; ++y) {
    C gradient[kVec], below[kVec];
    if (kThen == Then::kSlope && y > y_begin) load<T, kVec>(grad_out, gradient);
#pragma unroll
    for (int i = 0; i < kVec; ++i) below[i] = bias[i];
    if (y >= 0 && y < h) {
#pragma unroll
      for (int dx = 0; dx < 3; ++dx) {
        C pixel[kVec];
        load_or_zero<T, kVec>(dx == 1 || (dx == 0 ? has_left : has_right),
                              from + (dx - 1) * p.tokens_stride_n, pixel);
#pragma unroll
        for (int i = 0; i < kVec; ++i) {
          above[i] += pixel[i] * tap[6 + dx][i];
          here[i] += pixel[i] * tap[3 + dx][i];
          below[i] += pixel[i] * tap[dx][i];
        }
      }
    }
    from += w * p.tokens_stride_n;
    if (y > y_begin) {
#pragma unroll
      for (int i = 0; i < kVec; ++i) {
        if (kThen == Then::kGelu) above[i] = gelu(above[i]);
        if (kThen == Then::kSlope) above[i] = gradient[i] * gelu_slope(above[i]);
      }
      store<T, kVec>(above, to);
      to += static_cast<int64_t>(w) * p.channels;
      grad_out += w * p.grad_out_stride_n;
    }
#pragma unroll
    for (int i = 0; i < kVec; ++i) above[i] = here[i], here[i] = below[i];
  }
}

// Grids and their tiles of tile_h rows; across, a tile is tile_w columns, or where that is 0 as
// many vectors of channels as a block has threads.
inline KernelParams kernel_params(const DwconvGeluParams& p, int vec, int tile_h, int tile_w) {
  VITADAPTER_CHECK(p.grids <= kMaxGrids, "dwconv_gelu: at most 16 grids");
  VITADAPTER_CHECK(p.num_tokens < int64_t(1) << 31, "dwconv_gelu: at most 2^31 - 1 tokens");
  KernelParams k{};
  k.tokens = p.tokens, k.weight = p.weight, k.bias = p.bias, k.grad_out = p.grad_out;
  k.out = p.out, k.partial_sums = p.partial_sums;
  k.tokens_stride_b = p.tokens_stride_b, k.tokens_stride_n = p.tokens_stride_n;
  k.grad_out_stride_b = p.grad_out_stride_b, k.grad_out_stride_n = p.grad_out_stride_n;
  k.num_tokens = static_cast<int>(p.num_tokens), k.channels = static_cast<int>(p.channels);
  k.vectors = k.channels / vec;
  k.grids = static_cast<int>(p.grids);
  int64_t first_token = 0, tiles = 0;
  for (int g = 0; g < k.grids; ++g) {
    const int64_t h = p.grid_hw[g].h, w = p.grid_hw[g].w;
    VITADAPTER_CHECK(h > 0 && w > 0, "dwconv_gelu: a grid size must be positive");
    const int64_t across =
        tile_w ? (w + tile_w - 1) / tile_w : (w * k.vectors + kThreads - 1) / kThreads;
    k.grid[g] = {p.grid_hw[g].h, p.grid_hw[g].w, static_cast<int>(first_token),
                 static_cast<int>(tiles), static_cast<int>(across)};
    first_token += h * w;
    tiles += across * ((h + tile_h - 1) / tile_h);
    VITADAPTER_CHECK(across * kThreads < int64_t(1) << 31 && tiles < int64_t(1) << 31,
                     "dwconv_gelu: a grid is too large for 32-bit indices");
  }
  VITADAPTER_CHECK(first_token == p.num_tokens, "dwconv_gelu: grids do not add up to the tokens");
  k.tiles = static_cast<int>(tiles);
  return k;
}

// Launches a kernel over all tiles and images, in as many launches as the grid limits ask.
inline void launch_tiles(const char* name, void (*kernel)(const KernelParams), KernelParams k,
                         int64_t channel_groups, const DwconvGeluParams& p) {
  for (int64_t batch = 0; batch < p.batch; batch += kMaxGridYZ) {
    k.first_batch = static_cast<int>(batch);
    const Grid grid{k.tiles, p.batch - batch < kMaxGridYZ ? p.batch - batch : kMaxGridYZ,
                    channel_groups};
    launch(name, kernel, grid, kThreads, k, p.device, p.stream);
  }
}

// Whether 16-byte reads of every tensor stay aligned.
inline bool is_aligned(const DwconvGeluParams& p, int vec) {
  const int64_t element = 16 / vec;
  auto address = [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; };
  auto stride = [&](int64_t count) { return count * element % 16 == 0; };
  return p.channels % vec == 0 && address(p.tokens) && address(p.weight) && address(p.bias) &&
         address(p.grad_out) && address(p.out) && address(p.grad_tokens) && address(p.grad_sum) &&
         stride(p.tokens_stride_b) && stride(p.tokens_stride_n) && stride(p.grad_out_stride_b) &&
         stride(p.grad_out_stride_n);
}

// Calls run(type, channels of a thread): 16 bytes of them, or one.
template <typename Run>
void dispatch_vector(const DwconvGeluParams& p, Run&& run) {
  with_type(p.dtype, p.tokens, [&](auto* tokens) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(tokens)>>;
    constexpr std::integral_constant<int, 16 / sizeof(T)> several{};
    if constexpr (sizeof(T) < 8) {
      if (is_aligned(p, several)) return run(T{}, several);
    }
    run(T{}, std::integral_constant<int, 1>{});
  });
}

}  // namespace vitadapter::VITADAPTER_ISA::dwconv_gelu
