// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// What every kernel file starts with: the CUDA language, or its stand-in on the CPU; launching; and
// moving eight elements at a time.
#pragma once

#ifdef __CUDACC__
#include <cuda_runtime.h>
#if CUDART_VERSION < 12000
#error "vitadapter_fast needs CUDA 12.0 or newer"
#endif
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 750
#error "vitadapter_fast needs sm_75 or newer"
#endif
#else
#include "common/cuda_on_cpu.h"
#endif

#include <stdexcept>
#include <string>

#include "common/convert.h"
#include "common/cuda_error.h"

namespace vitadapter::VITADAPTER_ISA {

struct Grid {
  int64_t x = 1, y = 1, z = 1;
};

constexpr int64_t kMaxGridYZ = 65535;

#ifdef __CUDACC__

inline void check_cuda(cudaError_t error, const char* what, int device) {
  if (error == cudaSuccess) return;
  int major = 0, minor = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  throw std::runtime_error(describe_cuda_error(
      what, cudaGetErrorName(error), cudaGetErrorString(error), device, 10 * major + minor));
}

// Makes a device current for a launch and restores the caller's.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) : device_(device) {
    check_cuda(cudaGetDevice(&before_), "cudaGetDevice", device);
    if (before_ != device) check_cuda(cudaSetDevice(device), "cudaSetDevice", device);
  }
  ~DeviceGuard() {
    if (before_ != device_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int device_, before_ = 0;
};

// The only place with <<<>>>. Every kernel takes one struct by value.
template <typename Params>
void launch(const char* name, void (*kernel)(const Params), Grid grid, int threads,
            const Params& params, int device, void* stream) {
  if (grid.x <= 0 || grid.y <= 0 || grid.z <= 0) return;
  const dim3 blocks(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y),
                    static_cast<unsigned>(grid.z));
  kernel<<<blocks, threads, 0, static_cast<cudaStream_t>(stream)>>>(params);
  check_cuda(cudaGetLastError(), name, device);
}

#else

class DeviceGuard {
 public:
  explicit DeviceGuard(int) {}
};

template <typename Params>
void launch(const char* name, void (*kernel)(const Params), Grid grid, int threads,
            const Params& params, int, void*) {
  if (grid.x <= 0 || grid.y <= 0 || grid.z <= 0) return;
  try {
    cuda_on_cpu::launch(kernel,
                        {static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y),
                         static_cast<unsigned>(grid.z)},
                        {static_cast<unsigned>(threads)}, params);
  } catch (const std::exception& error) {
    throw std::runtime_error(std::string("vitadapter_fast: ") + name + ": " + error.what());
  }
}

#endif

__device__ __forceinline__ float exp2_of(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return std::exp2(x);
#endif
}

// a / b to 2 ulp, for b from 2^-126 to 2^126. __fdividef scales the b that the approximation would
// flush to zero, in five instructions, unless the compiler sees b's range as it does in GELU.
__device__ __forceinline__ float quotient_of(float a, float b) {
#ifdef __CUDA_ARCH__
  float inverse;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(b));
  return a * inverse;
#else
  return a / b;
#endif
}

// Whether one atomic adds four floats: on sm_90 and later, with CUDA 12.1 and later; on the CPU as
// a test asks.
#ifndef __CUDACC__
inline bool has_float4_atomics() { return cuda_on_cpu::has_float4_atomics; }
#elif CUDART_VERSION >= 12010 && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define VITADAPTER_HAS_FLOAT4_ATOMICS
__device__ constexpr bool has_float4_atomics() { return true; }
#else
__device__ constexpr bool has_float4_atomics() { return false; }
#endif

// Where is_wanted, adds eight floats to global memory, atomically: to neighbors, 16 bytes at a time
// where has_float4_atomics(), or to every kStep-th. The branch is within the instructions, or the
// compiler provides for warps whose lanes come to the next shuffle one by one, with as much code
// again.
template <int kStep>
__device__ __forceinline__ void add8_if(bool is_wanted, float* to, const float a[8]) {
#ifndef __CUDACC__
  if (!is_wanted) return;
  if (has_float4_atomics()) {
    for (int i = 0; i < 8; i += 4)
      atomicAdd(reinterpret_cast<float4*>(to + i), make_float4(a[i], a[i + 1], a[i + 2], a[i + 3]));
  } else {
    for (int i = 0; i < 8; ++i) atomicAdd(to + i * kStep, a[i]);
  }
#elif defined(VITADAPTER_HAS_FLOAT4_ATOMICS)
  asm volatile(
      "{.reg .pred p; setp.eq.u32 p, %1, 0; @p bra DONE;"
      "red.global.add.v4.f32 [%0], {%2, %3, %4, %5};"
      "red.global.add.v4.f32 [%0 + 16], {%6, %7, %8, %9}; DONE: }" ::"l"(
          __cvta_generic_to_global(to)),
      "r"(static_cast<unsigned>(is_wanted)), "f"(a[0]), "f"(a[1]), "f"(a[2]), "f"(a[3]), "f"(a[4]),
      "f"(a[5]), "f"(a[6]), "f"(a[7])
      : "memory");
#elif defined(__CUDA_ARCH__)
  asm volatile(
      "{.reg .pred p; setp.eq.u32 p, %1, 0; @p bra DONE;"
      "red.global.add.f32 [%0], %2; red.global.add.f32 [%0 + %10], %3;"
      "red.global.add.f32 [%0 + 2 * %10], %4; red.global.add.f32 [%0 + 3 * %10], %5;"
      "red.global.add.f32 [%0 + 4 * %10], %6; red.global.add.f32 [%0 + 5 * %10], %7;"
      "red.global.add.f32 [%0 + 6 * %10], %8; red.global.add.f32 [%0 + 7 * %10], %9; DONE: }" ::"l"(
          __cvta_generic_to_global(to)),
      "r"(static_cast<unsigned>(is_wanted)), "f"(a[0]), "f"(a[1]), "f"(a[2]), "f"(a[3]), "f"(a[4]),
      "f"(a[5]), "f"(a[6]), "f"(a[7]), "n"(4 * kStep)
      : "memory");
#endif
}

// Eight neighboring elements as floats, from 16-byte (float: two 16-byte) reads.
__device__ __forceinline__ void load8(const float* from, float to[8]) {
  const float4 a = __ldg(reinterpret_cast<const float4*>(from));
  const float4 b = __ldg(reinterpret_cast<const float4*>(from) + 1);
  to[0] = a.x, to[1] = a.y, to[2] = a.z, to[3] = a.w;
  to[4] = b.x, to[5] = b.y, to[6] = b.z, to[7] = b.w;
}

__device__ __forceinline__ void unpack2(BFloat16, unsigned pair, float* to) {
  to[0] = __uint_as_float(pair << 16);
  to[1] = __uint_as_float(pair & 0xffff0000u);
}

__device__ __forceinline__ void unpack2(Half, unsigned pair, float* to) {
#ifdef __CUDACC__
  const float2 both = __half22float2(*reinterpret_cast<const __half2*>(&pair));
  to[0] = both.x, to[1] = both.y;
#else
  to[0] = to_float(Half{static_cast<uint16_t>(pair)});
  to[1] = to_float(Half{static_cast<uint16_t>(pair >> 16)});
#endif
}

template <typename T>
__device__ __forceinline__ void load8(const T* from, float to[8]) {
  const uint4 raw = __ldg(reinterpret_cast<const uint4*>(from));
  unpack2(T{}, raw.x, to), unpack2(T{}, raw.y, to + 2);
  unpack2(T{}, raw.z, to + 4), unpack2(T{}, raw.w, to + 6);
}

__device__ __forceinline__ void store8(const float from[8], float* to) {
  reinterpret_cast<float4*>(to)[0] = make_float4(from[0], from[1], from[2], from[3]);
  reinterpret_cast<float4*>(to)[1] = make_float4(from[4], from[5], from[6], from[7]);
}

// Two at once from sm_80 on.
__device__ __forceinline__ unsigned pack2(BFloat16, float low, float high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  unsigned pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#else
  return to_bfloat16(low).bits | static_cast<unsigned>(to_bfloat16(high).bits) << 16;
#endif
}

__device__ __forceinline__ unsigned pack2(Half, float low, float high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  unsigned pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#else
  return to_half(low).bits | static_cast<unsigned>(to_half(high).bits) << 16;
#endif
}

template <typename T>
__device__ __forceinline__ void store8(const float from[8], T* to) {
  *reinterpret_cast<uint4*>(to) =
      make_uint4(pack2(T{}, from[0], from[1]), pack2(T{}, from[2], from[3]),
                 pack2(T{}, from[4], from[5]), pack2(T{}, from[6], from[7]));
}

// kVec neighboring elements: 16 bytes of them or one.
template <typename T, int kVec>
__device__ __forceinline__ void store(const Compute<T> from[kVec], T* to) {
  if constexpr (kVec == 8)
    store8(from, to);
  else if constexpr (kVec == 4)
    *reinterpret_cast<float4*>(to) = make_float4(from[0], from[1], from[2], from[3]);
  else
    from_compute(from[0], to);
}

// Two neighboring elements, from one aligned read.
__device__ __forceinline__ void load2(const float* from, float to[2]) {
  const float2 both = __ldg(reinterpret_cast<const float2*>(from));
  to[0] = both.x, to[1] = both.y;
}

template <typename T>
__device__ __forceinline__ void load2(const T* from, float to[2]) {
  unpack2(T{}, __ldg(reinterpret_cast<const unsigned*>(from)), to);
}

__device__ __forceinline__ void store2(float x, float y, float* to) {
  *reinterpret_cast<float2*>(to) = float2{x, y};
}

template <typename T>
__device__ __forceinline__ void store2(float x, float y, T* to) {
  *reinterpret_cast<unsigned*>(to) = pack2(T{}, x, y);
}

}  // namespace vitadapter::VITADAPTER_ISA
