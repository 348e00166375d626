// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// GELU and its slope of a vector.
#pragma once

#include <cmath>
#include <type_traits>

#include "common/gelu.h"
#include "common/simd.h"

namespace vitadapter::VITADAPTER_ISA {

// 2^y to 2e-9 before rounding, for -126 < y <= 0: a minimax polynomial about the nearest integer.
template <typename V>
inline V exp2_of(V y) {
  // Adding this leaves the nearest integer in the low bits.
  const V shift = V::set(0x1.8p23f);
  const V shifted = y + shift, r = y - (shifted - shift);
  V sum = V::set(1.53533618e-4f);
  for (float c : {1.33988744e-3f, 9.61843736e-3f, 5.55033247e-2f, 0.240226479f, 0.693147203f, 1.f})
    sum = V::fma(sum, r, V::set(c));
  return V::scale(sum, shifted);
}

// GELU, or its slope. NaN gives NaN.
template <bool kSlope, typename V>
inline V gelu(V x) {
  const V zero = V::set(0), end = V::set(kTailEnd);
  const V bounded = V::max(zero - end, V::min(end, x)), a = V::max(zero - bounded, bounded);
  const V bell = exp2_of(a * a * V::set(-0.721347520f));  // log2(e) / 2
  auto multiply_add = [](V u, auto sum, float c) {
    if constexpr (std::is_same_v<decltype(sum), float>)
      return V::fma(u, V::set(sum), V::set(c));
    else
      return V::fma(u, sum, V::set(c));
  };
  const V tail = bell * scaled_tail(a / (a + V::set(kTailKnee)), multiply_add);
  if (!kSlope) return V::max(zero, x) - a * tail;
  const V cdf = tail + V::keep_if_greater(x, zero, V::set(1) - (tail + tail));
  return V::fma(bounded * V::set(kInverseSqrt2Pi), bell, cdf);
}

template <bool kSlope, int kLanes>
inline Vec<double, kLanes> gelu(Vec<double, kLanes> x) {
  for (double& lane : x.lane) {
    const double cdf = 0.5 * std::erfc(-lane * M_SQRT1_2);
    if (kSlope)
      lane = cdf + lane * std::exp(-0.5 * lane * lane) * (0.5 * M_SQRT1_2 * M_2_SQRTPI);
    else
      lane *= cdf;
  }
  return x;
}

}  // namespace vitadapter::VITADAPTER_ISA
