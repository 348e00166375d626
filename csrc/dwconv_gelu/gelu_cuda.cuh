// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// GELU and its slope of one number: 18 and 22 instructions, of which two are in the special unit.
#pragma once

#include "common/device.cuh"
#include "common/gelu.h"

namespace vitadapter::VITADAPTER_ISA::dwconv_gelu {

// The smaller or larger number; NaN where either is NaN, which fminf and fmaxf drop.
__device__ __forceinline__ float min_or_nan(float a, float b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(a) : "f"(a), "f"(b));
  return a;
#else
  return !(a >= b) ? a : b;
#endif
}

__device__ __forceinline__ float max_or_nan(float a, float b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(a) : "f"(a), "f"(b));
  return a;
#else
  return !(a <= b) ? a : b;
#endif
}

struct Tail {
  float bell, upper;  // exp(-a^2 / 2) and Q(a)

  __device__ __forceinline__ explicit Tail(float a) : bell(exp2_of(-0.721347520f * (a * a))) {
    auto multiply_add = [](float u, float sum, float c) { return fmaf(u, sum, c); };
    upper = bell * scaled_tail(quotient_of(a, a + kTailKnee), multiply_add);
  }
};

__device__ __forceinline__ float gelu(float x) {
  const float a = fminf(fabsf(x), kTailEnd);
  return fmaf(-a, Tail(a).upper, max_or_nan(x, 0.f));
}

__device__ __forceinline__ float gelu_slope(float x) {
  const float bounded = max_or_nan(min_or_nan(x, kTailEnd), -kTailEnd);
  const Tail tail(fabsf(bounded));
  const float cdf = x > 0.f ? 1.f - tail.upper : tail.upper;
  return fmaf(bounded * kInverseSqrt2Pi, tail.bell, cdf);
}

__device__ __forceinline__ double gelu(double x) { return x * 0.5 * erfc(-x * M_SQRT1_2); }

__device__ __forceinline__ double gelu_slope(double x) {
  return 0.5 * erfc(-x * M_SQRT1_2) + x * exp(-0.5 * x * x) * (0.5 * M_SQRT1_2 * M_2_SQRTPI);
}

}  // namespace vitadapter::VITADAPTER_ISA::dwconv_gelu
