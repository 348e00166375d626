// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// One element between memory and the type it is computed in, on host and device.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/dtype.h"

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define VITADAPTER_HD __host__ __device__
#else
#define VITADAPTER_HD
#endif

namespace vitadapter::VITADAPTER_ISA {

VITADAPTER_HD inline float to_float(BFloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}

VITADAPTER_HD inline float to_float(Half value) {
#ifdef __CUDA_ARCH__
  return __half2float(__ushort_as_half(value.bits));
#else
  const uint32_t sign = (value.bits & 0x8000u) << 16, exponent = (value.bits >> 10) & 31,
                 mantissa = value.bits & 0x3ffu;
  uint32_t bits;
  if (exponent == 0) {  // zero and subnormal: mantissa * 2^-24, exact in float
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    std::memcpy(&bits, &magnitude, 4);
    bits |= sign;
  } else {
    bits = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | (mantissa << 13);
  }
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
#endif
}

VITADAPTER_HD inline BFloat16 to_bfloat16(float value) {
// For devices without the instruction, the headers of CUDA 12.0 have no function either.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  return BFloat16{__bfloat16_as_ushort(__float2bfloat16_rn(value))};
#else
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if (value != value) return {static_cast<uint16_t>((bits >> 16) | 0x40)};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16)};
#endif
}

VITADAPTER_HD inline Half to_half(float value) {
#ifdef __CUDA_ARCH__
  return Half{__half_as_ushort(__float2half_rn(value))};
#else
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint16_t sign = (bits >> 16) & 0x8000u;
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u)};
  if (bits >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};  // rounds to infinity
  if (bits < 0x38800000u) {  // subnormal: adding 0.5 rounds at 2^-24, the last bit of a Half
    float magnitude;
    std::memcpy(&magnitude, &bits, 4);
    magnitude += 0.5f;
    std::memcpy(&bits, &magnitude, 4);
    return {static_cast<uint16_t>(sign | (bits - 0x3f000000u))};
  }
  bits += 0xfffu + ((bits >> 13) & 1) - (112u << 23);
  return {static_cast<uint16_t>(sign | (bits >> 13))};
#endif
}

VITADAPTER_HD inline void from_compute(float value, float* out) { *out = value; }
VITADAPTER_HD inline void from_compute(float value, BFloat16* out) { *out = to_bfloat16(value); }
VITADAPTER_HD inline void from_compute(float value, Half* out) { *out = to_half(value); }
VITADAPTER_HD inline void from_compute(double value, double* out) { *out = value; }
VITADAPTER_HD inline void from_compute(double value, float* out) {
  *out = static_cast<float>(value);
}
VITADAPTER_HD inline float to_float(float value) { return value; }
VITADAPTER_HD inline double to_float(double value) { return value; }

}  // namespace vitadapter::VITADAPTER_ISA
