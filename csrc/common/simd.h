// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// 256-bit vectors of float or double: AVX2 where the file is compiled for it, plain loops
// elsewhere.
//
// Files that include this are compiled once per instruction set, with VITADAPTER_ISA naming it.
// Everything here lives in that namespace, so that the linker never merges two compilations.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>

#include "common/convert.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include <immintrin.h>
#define VITADAPTER_AVX2 1
#endif
#ifdef __AVX512F__
#define VITADAPTER_AVX512 1
#endif

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

#ifdef VITADAPTER_AVX2
template <>
struct Vec<float> {
  static constexpr int kLanes = 8;
  __m256 v;

  static Vec set(float value) { return {_mm256_set1_ps(value)}; }
  static Vec load(const float* from) { return {_mm256_loadu_ps(from)}; }
  static Vec load(const BFloat16* from) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16))};
  }
  static Vec load(const Half* from) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)))};
  }
  void store(float* to) const { _mm256_storeu_ps(to, v); }
  void store(BFloat16* to) const {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i nan = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256 is_nan = _mm256_cmp_ps(v, v, _CMP_UNORD_Q);
    const __m256i high =
        _mm256_srli_epi32(_mm256_castps_si256(_mm256_blendv_ps(_mm256_castsi256_ps(rounded),
                                                               _mm256_castsi256_ps(nan), is_nan)),
                          16);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(packed));
  }
  void store(Half* to) const {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                     _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  friend Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
  friend Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
  static Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
  static Vec floor(Vec a) { return {_mm256_floor_ps(a.v)}; }
  static Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.v, b.v)}; }
  static Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
  static Vec keep_if_greater(Vec test, Vec bound, Vec a) {
    return {_mm256_and_ps(_mm256_cmp_ps(test.v, bound.v, _CMP_GT_OQ), a.v)};
  }
  static Vec drop_if_at_most(Vec test, Vec bound, Vec a) {
    return {_mm256_andnot_ps(_mm256_cmp_ps(test.v, bound.v, _CMP_LE_OQ), a.v)};
  }
  void store_int(int32_t* to) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_cvttps_epi32(v));
  }
  static void load_pairs(const float* from, Vec* x, Vec* y) {
    const __m256 a = _mm256_loadu_ps(from), b = _mm256_loadu_ps(from + 8);
    const __m256 low = _mm256_permute2f128_ps(a, b, 0x20),
                 high = _mm256_permute2f128_ps(a, b, 0x31);
    x->v = _mm256_shuffle_ps(low, high, 0x88);
    y->v = _mm256_shuffle_ps(low, high, 0xdd);
  }
  static void store_pairs(float* to, Vec x, Vec y) {
    const __m256 low = _mm256_unpacklo_ps(x.v, y.v), high = _mm256_unpackhi_ps(x.v, y.v);
    _mm256_storeu_ps(to, _mm256_permute2f128_ps(low, high, 0x20));
    _mm256_storeu_ps(to + 8, _mm256_permute2f128_ps(low, high, 0x31));
  }
  static void load_rows(const float* from, Vec row[4]) {
    __m256 r[4];
    for (int i = 0; i < 4; ++i) {
      r[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(from + 4 * i)),
                                  _mm_loadu_ps(from + 4 * i + 16), 1);
    }
    const __m256 a = _mm256_unpacklo_ps(r[0], r[1]), b = _mm256_unpackhi_ps(r[0], r[1]);
    const __m256 c = _mm256_unpacklo_ps(r[2], r[3]), d = _mm256_unpackhi_ps(r[2], r[3]);
    row[0].v = _mm256_shuffle_ps(a, c, 0x44);
    row[1].v = _mm256_shuffle_ps(a, c, 0xee);
    row[2].v = _mm256_shuffle_ps(b, d, 0x44);
    row[3].v = _mm256_shuffle_ps(b, d, 0xee);
  }
  static void transpose(Vec rows[8]) {
    __m256 pair[8], quad[8];
    for (int i = 0; i < 8; i += 2) {
      pair[i] = _mm256_unpacklo_ps(rows[i].v, rows[i + 1].v);
      pair[i + 1] = _mm256_unpackhi_ps(rows[i].v, rows[i + 1].v);
    }
    for (int i = 0; i < 8; i += 4) {
      for (int k = 0; k < 2; ++k) {
        quad[i + 2 * k] = _mm256_shuffle_ps(pair[i + k], pair[i + k + 2], 0x44);
        quad[i + 2 * k + 1] = _mm256_shuffle_ps(pair[i + k], pair[i + k + 2], 0xee);
      }
    }
    for (int i = 0; i < 4; ++i) {
      rows[i].v = _mm256_permute2f128_ps(quad[i], quad[i + 4], 0x20);
      rows[i + 4].v = _mm256_permute2f128_ps(quad[i], quad[i + 4], 0x31);
    }
  }
  static void add_sums(const Vec v[4], float* to) {
    const __m256 pairs =
        _mm256_hadd_ps(_mm256_hadd_ps(v[0].v, v[1].v), _mm256_hadd_ps(v[2].v, v[3].v));
    const __m128 sums = _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1));
    _mm_storeu_ps(to, _mm_add_ps(_mm_loadu_ps(to), sums));
  }
  // exp(a) for a <= 0 to 1.5 ulp; 0 below -87.3, NaN for NaN.
  // 2^n * e^r with r = a - n ln 2 in [-.35, .35], and e^r by its Taylor series to degree 7.
  static Vec exp(Vec a) {
    const Vec bounded = max(set(-87.3f), a);
    const Vec n = {_mm256_round_ps((bounded * set(1.44269504f)).v,
                                   _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
    const Vec r = fma(n, set(2.12194440e-4f), fma(n, set(-0.693359375f), bounded));
    Vec p = set(1.f / 5040);
    for (float c : {1.f / 720, 1.f / 120, 1.f / 24, 1.f / 6, .5f, 1.f, 1.f}) p = fma(p, r, set(c));
    const __m256i power =
        _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvttps_epi32(n.v), _mm256_set1_epi32(127)), 23);
    const __m256 vanishes = _mm256_cmp_ps(a.v, set(-87.3f).v, _CMP_LT_OQ);
    return {_mm256_andnot_ps(vanishes, (p * Vec{_mm256_castsi256_ps(power)}).v)};
  }
  static Vec scale(Vec a, Vec exponent) {
    const __m256i n = _mm256_slli_epi32(_mm256_castps_si256(exponent.v), 23);
    return {_mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a.v), n))};
  }
};
#endif

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
  static Wide fma(Wide a, Wide b, Wide c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
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
