// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// Table and tokens in, their sum at the token grid out. A warp is one target pixel; lane k owns tap
// k: it alone works out the weight and the place, and all lanes then read that source row together.
#include "common/device.cuh"
#include "common/dispatch.h"
#include "patch_embed/bicubic.h"
#include "patch_embed/checks.h"

namespace vitadapter::VITADAPTER_ISA {
namespace {

constexpr int kThreads = 256, kWarp = 32, kWarps = kThreads / kWarp;

struct KernelParams {
  const void *source, *tokens, *bias;
  void* out;
  Bicubic y, x;
  bool is_transposed;
  int batch, channels, targets, target_w, source_w;
};

template <typename C>
struct Tap {
  C weight;
  int row;  // of the source, in elements
};

// The taps of one target: the product of its rows and its columns.
template <typename C>
struct Taps {
  const KernelParams& p;
  int target_y, target_x;
  Range y, x;
  int across, count;

  __device__ __forceinline__ Taps(const KernelParams& params, int target)
      : p(params),
        target_y(target / params.target_w),
        target_x(target % params.target_w),
        y(sources_of(p.y, p.is_transposed, target_y)),
        x(sources_of(p.x, p.is_transposed, target_x)),
        across(x.last - x.first + 1),
        count(across * (y.last - y.first + 1)) {}

  __device__ __forceinline__ Tap<C> operator[](int k) const {
    if (k >= count) return {C(0), 0};
    const int source_y = y.first + k / across, source_x = x.first + k % across;
    return {share_of<C>(p.y, p.is_transposed, target_y, source_y) *
                share_of<C>(p.x, p.is_transposed, target_x, source_x),
            (source_y * p.source_w + source_x) * p.channels};
  }
};

// Eight channels of a lane at a time; kVector: by 16-byte accesses, else one by one.
template <bool kVector, typename T, typename C>
__device__ __forceinline__ void load_channels(const T* from, int channels, C to[8]) {
  if constexpr (kVector) {
    load8(from, to);
  } else {
    for (int d = 0; d < 8; ++d) to[d] = d < channels ? C(to_float(from[d])) : C(0);
  }
}

// A warp is one target pixel: its lanes divide the channels, eight at a time, and lane k owns tap
// k. Registers, at most: 128, the launch bound. Left alone the compiler keeps to 64, and spills.
template <bool kVector, typename S, typename T, typename O>
__global__ void __launch_bounds__(kThreads, 2)
    resize_add_kernel(const __grid_constant__ KernelParams p) {
  using C = Compute<S>;
  const int target = blockIdx.x * kWarps + threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  if (target >= p.targets) return;
  const Taps<C> taps(p, target);
  Tap<C> mine = taps[lane];
  for (int first = 0; first < p.channels; first += 8 * kWarp) {
    // All lanes stay for the shuffles.
    const int channel = first + 8 * lane, left = p.channels - channel;
    C sum[8] = {};
    for (int k = 0; k < taps.count; k += kWarp) {
      if (taps.count > kWarp) mine = taps[k + lane];
      const int here = min(taps.count - k, kWarp);
      for (int owner = 0; owner < here; ++owner) {
        const C weight = __shfl_sync(0xffffffffu, mine.weight, owner);
        const int row = __shfl_sync(0xffffffffu, mine.row, owner);
        if (left <= 0) continue;
        C from[8];
        load_channels<kVector>(static_cast<const S*>(p.source) + row + channel, left, from);
#pragma unroll
        for (int d = 0; d < 8; ++d) sum[d] += weight * from[d];
      }
    }
    if (left <= 0) continue;
    if (p.bias) {
      C bias[8];
      load_channels<kVector>(static_cast<const T*>(p.bias) + channel, left, bias);
#pragma unroll
      for (int d = 0; d < 8; ++d) sum[d] += bias[d];
    }
    for (int b = 0; b < p.batch; ++b) {
      const int64_t at = (static_cast<int64_t>(b) * p.targets + target) * p.channels + channel;
      C tokens[8] = {};
      if (p.tokens) load_channels<kVector>(static_cast<const T*>(p.tokens) + at, left, tokens);
#pragma unroll
      for (int d = 0; d < 8; ++d) tokens[d] += sum[d];
      O* out = static_cast<O*>(p.out) + at;
      if constexpr (kVector) {
        store8(tokens, out);
      } else {
        for (int d = 0; d < 8; ++d)
          if (d < left) from_compute(tokens[d], out + d);
      }
    }
  }
}

bool is_vectorizable(const ResizeAddParams& p) {
  auto aligned = [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; };
  return p.source_dtype != DType::kFloat64 && p.channels % 8 == 0 && aligned(p.source) &&
         aligned(p.tokens) && aligned(p.bias) && aligned(p.out);
}

}  // namespace
}  // namespace vitadapter::VITADAPTER_ISA

namespace vitadapter {

void patch_embed_resize_add_cuda(const ResizeAddParams& p) {
  using namespace VITADAPTER_ISA;
  check(p);
  const int64_t targets_y = targets(p.y, p.is_transposed),
                targets_x = targets(p.x, p.is_transposed);
  const int64_t source_pixels =
      int64_t(sources(p.y, p.is_transposed)) * sources(p.x, p.is_transposed);
  for (int64_t size : {targets_y * targets_x, source_pixels * p.channels, p.batch})
    VITADAPTER_CHECK(size < int64_t(1) << 31, "patch_embed: a map exceeds 32-bit indices");
  if (p.batch == 0 || p.channels == 0) return;
  const KernelParams k{p.source,
                       p.tokens,
                       p.bias,
                       p.out,
                       p.y,
                       p.x,
                       p.is_transposed,
                       static_cast<int>(p.batch),
                       static_cast<int>(p.channels),
                       static_cast<int>(targets_y * targets_x),
                       static_cast<int>(targets_x),
                       static_cast<int>(sources(p.x, p.is_transposed))};
  const DeviceGuard guard(p.device);
  const Grid grid{(k.targets + kWarps - 1) / kWarps, 1, 1};
  const bool done = dispatch_types(p, [&](auto source, auto tokens, auto out) {
    using S = decltype(source);
    dispatch_bool(is_vectorizable(p), [&](auto is_vector) {
      // float64 has no vector form.
      constexpr bool kVector = is_vector() && sizeof(Compute<S>) == 4;
      launch("patch_embed resize and add",
             resize_add_kernel<kVector, S, decltype(tokens), decltype(out)>, grid, kThreads, k,
             p.device, p.stream);
    });
  });
  VITADAPTER_CHECK(done, kNoKernel);
}

}  // namespace vitadapter
