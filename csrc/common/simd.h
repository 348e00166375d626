// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// 256-bit vectors of float or double: AVX2 where the file is compiled for it, two registers of NEON
// on aarch64, plain loops elsewhere.
//
// Files that include this are compiled once per instruction set, with VITADAPTER_ISA naming it.
// Everything here lives in that namespace, so that the linker never merges two compilations.
#pragma once

#include "common/simd_portable.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include "common/simd_avx2.h"
#elif defined(__aarch64__)
#include "common/simd_neon.h"
#endif
#ifdef __AVX512F__
#include <immintrin.h>
#define VITADAPTER_AVX512 1
#endif

namespace vitadapter::VITADAPTER_ISA {

// For matrix products, whose time is that of their multiply-adds: the widest vectors there are.
template <typename C>
struct Wide : Vec<C> {
  Wide() = default;
  Wide(Vec<C> v) : Vec<C>(v) {}
  static Wide set(C value) { return Vec<C>::set(value); }
  static Wide load(const C* from) { return Vec<C>::load(from); }
  static Wide fma(Wide a, Wide b, Wide c) { return Vec<C>::fma(a, b, c); }
};

#ifdef VITADAPTER_AVX512
template <>
struct Wide<float> {
  static constexpr int kLanes = 16;
  __m512 v;

  static Wide set(float value) { return {_mm512_set1_ps(value)}; }
  static Wide load(const float* from) { return {_mm512_loadu_ps(from)}; }
  void store(float* to) const { _mm512_storeu_ps(to, v); }
  friend Wide operator+(Wide a, Wide b) { return {_mm512_add_ps(a.v, b.v)}; }
  friend Wide operator-(Wide a, Wide b) { return {_mm512_sub_ps(a.v, b.v)}; }
  friend Wide operator*(Wide a, Wide b) { return {_mm512_mul_ps(a.v, b.v)}; }
  static Wide fma(Wide a, Wide b, Wide c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  friend Wide operator/(Wide a, Wide b) { return {_mm512_div_ps(a.v, b.v)}; }
  static Wide min(Wide a, Wide b) { return {_mm512_min_ps(a.v, b.v)}; }
  static Wide max(Wide a, Wide b) { return {_mm512_max_ps(a.v, b.v)}; }
  static Wide keep_if_greater(Wide test, Wide bound, Wide a) {
    return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(test.v, bound.v, _CMP_GT_OQ), a.v)};
  }
  static Wide scale(Wide a, Wide shifted) {
    const __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(shifted.v), 23);
    return {_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a.v), exponent))};
  }
  static Wide drop_if_at_most(Wide test, Wide bound, Wide a) {
    return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(test.v, bound.v, _CMP_NLE_UQ), a.v)};
  }
  static Wide nearest(Wide a) { return {_mm512_roundscale_ps(a.v, 0)}; }
  static Wide power_of_2(Wide n) { return {_mm512_scalef_ps(_mm512_set1_ps(1), n.v)}; }
  static Wide exp(Wide a) { return exp_of(a); }
};

template <>
struct Wide<double> {
  static constexpr int kLanes = 8;
  __m512d v;

  static Wide set(double value) { return {_mm512_set1_pd(value)}; }
  static Wide load(const double* from) { return {_mm512_loadu_pd(from)}; }
  void store(double* to) const { _mm512_storeu_pd(to, v); }
  static Wide fma(Wide a, Wide b, Wide c) { return {_mm512_fmadd_pd(a.v, b.v, c.v)}; }
};
#endif

}  // namespace vitadapter::VITADAPTER_ISA
