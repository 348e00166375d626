// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// Queries, keys and values in, the first two rotated by their positions out; or rotated where they
// lie, so reads are plain ones: memory that a kernel writes must not be read past its caches.
#include "common/check.h"
#include "common/device.cuh"
#include "rope/params.h"

namespace vitadapter::VITADAPTER_ISA {
namespace {

constexpr int kThreads = 128;

struct KernelParams {
  const void *qkv, *tables;
  void* out;
  int64_t qkv_stride_b, qkv_stride_n, out_stride_b, out_stride_n;
  int units, per_token, vectors;  // units of an image and of a token; vectors of half a head
  int half, rotated, grid_h, grid_w, first_image;  // rotated: heads
  bool is_inverse;
};

// kVec neighboring components, 16 bytes of them or one.
template <typename T, int kVec>
__device__ __forceinline__ void load(const T* from, Compute<T> to[kVec]) {
  if constexpr (kVec == 8) {
    const uint4 raw = *reinterpret_cast<const uint4*>(from);
    unpack2(T{}, raw.x, to), unpack2(T{}, raw.y, to + 2);
    unpack2(T{}, raw.z, to + 4), unpack2(T{}, raw.w, to + 6);
  } else if constexpr (kVec == 4) {
    const float4 four = *reinterpret_cast<const float4*>(from);
    to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
  } else {
    to[0] = to_float(*from);
  }
}

template <int kVec, typename C>
__device__ __forceinline__ void load_table(const C* from, C to[kVec]) {
  if constexpr (kVec == 8)
    load8(from, to);
  else
    load<C, kVec>(from, to);
}

// A thread is kVec components of the first half of a head and the same of the second: pairs that
// rotate together. Neighboring threads are neighbors in memory. Registers, at most: 56.
template <typename T, int kVec>
__global__ void __launch_bounds__(kThreads) rope_kernel(const __grid_constant__ KernelParams p) {
  using C = Compute<T>;
  const int unit = blockIdx.x * kThreads + threadIdx.x;
  if (unit >= p.units) return;
  const int token = unit / p.per_token, in_token = unit - token * p.per_token;
  const int head = in_token / p.vectors, d = (in_token - head * p.vectors) * kVec;
  const int64_t image = p.first_image + blockIdx.y,
                at = static_cast<int64_t>(head) * 2 * p.half + d;
  const T* const from =
      static_cast<const T*>(p.qkv) + image * p.qkv_stride_b + token * p.qkv_stride_n + at;
  T* const to = static_cast<T*>(p.out) + image * p.out_stride_b + token * p.out_stride_n + at;

  C first[kVec], second[kVec];
  load<T, kVec>(from, first);
  load<T, kVec>(from + p.half, second);
  const int y = token / p.grid_w, x = token - y * p.grid_w;
  if (y < p.grid_h && head < p.rotated) {
    const int quarter = p.half / 2;
    const bool is_row = d < quarter;
    const C* const table = static_cast<const C*>(p.tables) +
                           static_cast<int64_t>(is_row ? y : p.grid_h + x) * p.half +
                           (is_row ? d : d - quarter);
    C cos[kVec], sin[kVec];
    load_table<kVec>(table, cos);
    load_table<kVec>(table + quarter, sin);
#pragma unroll
    for (int i = 0; i < kVec; ++i) {
      const C a = first[i], b = second[i], s = p.is_inverse ? -sin[i] : sin[i];
      first[i] = a * cos[i] - b * s;
      second[i] = b * cos[i] + a * s;
    }
  }
  store<T, kVec>(first, to);
  store<T, kVec>(second, to + p.half);
}

// Whether kVec components, at 16 bytes, stay aligned and are all of one axis.
bool is_aligned(const RopeParams& p, int vec) {
  const int64_t element = 16 / vec;
  auto address = [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; };
  bool is_whole = p.channels / 4 % vec == 0;
  for (int64_t stride : {p.qkv_stride_b, p.qkv_stride_n, p.out_stride_b, p.out_stride_n})
    is_whole = is_whole && stride * element % 16 == 0;
  return is_whole && address(p.qkv) && address(p.tables) && address(p.out);
}

template <typename T, int kVec>
void launch_all(const RopeParams& p) {
  const bool is_in_place = p.qkv == p.out;
  const int64_t tokens = is_in_place ? int64_t{p.hw.h} * p.hw.w : p.num_tokens;
  const int64_t vectors = p.channels / 2 / kVec;
  const int64_t per_token = (is_in_place ? 2 : 3) * p.heads * vectors;
  VITADAPTER_CHECK(tokens * per_token < int64_t{1} << 31 && p.num_tokens < int64_t{1} << 31,
                   "rope: an image exceeds 32-bit indices");
  KernelParams k{p.qkv,
                 p.tables,
                 p.out,
                 p.qkv_stride_b,
                 p.qkv_stride_n,
                 p.out_stride_b,
                 p.out_stride_n,
                 static_cast<int>(tokens * per_token),
                 static_cast<int>(per_token),
                 static_cast<int>(vectors),
                 static_cast<int>(p.channels / 2),
                 static_cast<int>(2 * p.heads),
                 p.hw.h,
                 p.hw.w,
                 0,
                 p.is_inverse};
  for (int64_t first = 0; first < p.batch; first += kMaxGridYZ) {
    k.first_image = static_cast<int>(first);
    const Grid grid{(k.units + kThreads - 1) / kThreads,
                    p.batch - first < kMaxGridYZ ? p.batch - first : kMaxGridYZ, 1};
    launch("rope", rope_kernel<T, kVec>, grid, kThreads, k, p.device, p.stream);
  }
}

}  // namespace
}  // namespace vitadapter::VITADAPTER_ISA

namespace vitadapter {

void rope_cuda(const RopeParams& p) {
  using namespace VITADAPTER_ISA;
  check(p);
  const DeviceGuard guard(p.device);
  with_type(p.dtype, p.qkv, [&](auto* qkv) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(qkv)>>;
    if constexpr (sizeof(T) < 8) {
      if (is_aligned(p, 16 / sizeof(T))) return launch_all<T, 16 / sizeof(T)>(p);
    }
    launch_all<T, 1>(p);
  });
}

}  // namespace vitadapter
