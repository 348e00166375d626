// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// The normal distribution's upper tail, from which CPU and CUDA kernels make GELU and its slope:
//
//   Q(a) = exp(-a^2 / 2) * M(a),  GELU(x) = max(x, 0) - |x| * Q(|x|)
//
// Unlike 1 + erf, Q loses no digits where GELU vanishes, and backward has the exponential it needs.
#pragma once

#include "common/convert.h"

namespace vitadapter::VITADAPTER_ISA {

// Above, Q is below 2e-19.
constexpr float kTailEnd = 9.f;
// M is smooth in u = a / (a + kTailKnee) up to infinity.
constexpr float kTailKnee = 4.5f;
constexpr float kInverseSqrt2Pi = 0.398942280f;

// M(a) = exp(a^2 / 2) * Q(a) to 1.1e-8 on [0, kTailEnd]: a minimax polynomial in u, with M(0) = 1/2
// kept exact. With all float rounding GELU is within 2.3 ulp above -1, and the distribution within
// 8e-8 everywhere.
template <typename V, typename MultiplyAdd>
VITADAPTER_HD inline V scaled_tail(V u, MultiplyAdd&& multiply_add) {
  V sum = multiply_add(u, -0.107246168f, 0.389563298f);
  sum = multiply_add(u, sum, -0.340382901f);
  sum = multiply_add(u, sum, -0.78943399f);
  sum = multiply_add(u, sum, 2.66290661f);
  sum = multiply_add(u, sum, -3.78762849f);
  sum = multiply_add(u, sum, 3.26723605f);
  sum = multiply_add(u, sum, -1.79523992f);
  return multiply_add(u, sum, 0.5f);
}

}  // namespace vitadapter::VITADAPTER_ISA
