// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// Vec of any type by plain loops: what each member does, and all that most types and processors
// have. Included by simd.h.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>

#include "common/convert.h"

namespace vitadapter::VITADAPTER_ISA {

// Portable form: the compiler vectorizes the loops as far as the target goes. Of one lane: what is
// left over where there are fewer elements than lanes.
template <typename C, int kCount = 32 / sizeof(C)>
struct Vec {
  static constexpr int kLanes = kCount;
  C lane[kLanes];

#define VITADAPTER_LANES for (int i = 0; i < kLanes; ++i)
  static Vec set(C value) {
    Vec r;
    VITADAPTER_LANES r.lane[i] = value;
    return r;
  }
  template <typename T>
  static Vec load(const T* from) {
    Vec r;
    VITADAPTER_LANES r.lane[i] = to_float(from[i]);
    return r;
  }
  template <typename T>
  void store(T* to) const {
    VITADAPTER_LANES from_compute(lane[i], to + i);
  }
  friend Vec operator+(Vec a, Vec b) {
    VITADAPTER_LANES a.lane[i] += b.lane[i];
    return a;
  }
  friend Vec operator-(Vec a, Vec b) {
    VITADAPTER_LANES a.lane[i] -= b.lane[i];
    return a;
  }
  friend Vec operator*(Vec a, Vec b) {
    VITADAPTER_LANES a.lane[i] *= b.lane[i];
    return a;
  }
  friend Vec operator/(Vec a, Vec b) {
    VITADAPTER_LANES a.lane[i] /= b.lane[i];
    return a;
  }
  static Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
  static Vec floor(Vec a) {
    VITADAPTER_LANES a.lane[i] = std::floor(a.lane[i]);
    return a;
  }
  // min and max give b where either is NaN, as the instructions do.
  static Vec min(Vec a, Vec b) {
    VITADAPTER_LANES a.lane[i] = a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i];
    return a;
  }
  static Vec max(Vec a, Vec b) {
    VITADAPTER_LANES a.lane[i] = a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i];
    return a;
  }
  // a where test > bound, else 0; false for NaN.
  static Vec keep_if_greater(Vec test, Vec bound, Vec a) {
    VITADAPTER_LANES a.lane[i] = test.lane[i] > bound.lane[i] ? a.lane[i] : C(0);
    return a;
  }
  // 0 where test <= bound, else a; a for NaN.
  static Vec drop_if_at_most(Vec test, Vec bound, Vec a) {
    VITADAPTER_LANES a.lane[i] = test.lane[i] <= bound.lane[i] ? C(0) : a.lane[i];
    return a;
  }
  void store_int(int32_t* to) const { VITADAPTER_LANES to[i] = static_cast<int32_t>(lane[i]); }
  // x0 y0 x1 y1 ... -> x, y
  static void load_pairs(const C* from, Vec* x, Vec* y) {
    VITADAPTER_LANES {
      x->lane[i] = from[2 * i];
      y->lane[i] = from[2 * i + 1];
    }
  }
  static void store_pairs(C* to, Vec x, Vec y) {
    VITADAPTER_LANES {
      to[2 * i] = x.lane[i];
      to[2 * i + 1] = y.lane[i];
    }
  }
  // One row of four per lane -> four vectors.
  static void load_rows(const C* from, Vec row[4]) {
    VITADAPTER_LANES for (int k = 0; k < 4; ++k) row[k].lane[i] = from[4 * i + k];
  }
  // As many rows as lanes -> their columns.
  static void transpose(Vec rows[kLanes]) {
    VITADAPTER_LANES for (int k = 0; k < i; ++k) {
      const C lower = rows[i].lane[k];
      rows[i].lane[k] = rows[k].lane[i];
      rows[k].lane[i] = lower;
    }
  }
  // Adds the lane sums of four vectors to to[0..3].
  static void add_sums(const Vec v[4], C* to) {
    for (int k = 0; k < 4; ++k) {
      C sum = 0;
      VITADAPTER_LANES sum += v[k].lane[i];
      to[k] += sum;
    }
  }
  static Vec exp(Vec a) {
    VITADAPTER_LANES a.lane[i] = std::exp(a.lane[i]);
    return a;
  }
  // a * 2^n for an a near 1 and the n in the low bits of exponent's mantissa; float only.
  static Vec scale(Vec a, Vec exponent) {
    VITADAPTER_LANES {
      uint32_t bits, n;
      std::memcpy(&bits, &a.lane[i], 4);
      std::memcpy(&n, &exponent.lane[i], 4);
      bits += n << 23;
      std::memcpy(&a.lane[i], &bits, 4);
    }
    return a;
  }
#undef VITADAPTER_LANES
};

// exp(a) for a <= 0 to 1.5 ulp; 0 up to -87.3, NaN for NaN.
// 2^n * e^r with r = a - n ln 2 in [-.35, .35], and e^r by its Taylor series to degree 7.
template <typename V>
inline V exp_of(V a) {
  const V end = V::set(-87.3f), bounded = V::max(end, a);
  const V n = V::nearest(bounded * V::set(1.44269504f));
  const V r = V::fma(n, V::set(2.12194440e-4f), V::fma(n, V::set(-0.693359375f), bounded));
  V p = V::set(1.f / 5040);
  for (float c : {1.f / 720, 1.f / 120, 1.f / 24, 1.f / 6, .5f, 1.f, 1.f})
    p = V::fma(p, r, V::set(c));
  return V::drop_if_at_most(a, end, p * V::power_of_2(n));
}

}  // namespace vitadapter::VITADAPTER_ISA
