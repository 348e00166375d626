// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// Rows of float32 or bfloat16 in; out, the same in 16 bits, as half_tile.h multiplies them: where
// AVX512_FP16 does, in float16, each times a power of two of its own; else in bfloat16, which has
// float32's range and needs none.
#pragma once

#include "common/lanes.h"
#include "common/simd.h"
#include "common/size.h"

namespace vitadapter::VITADAPTER_ISA {

#ifdef __AVX512FP16__
constexpr bool kHasFactors = true;
#else
constexpr bool kHasFactors = false;  // all are 1
#endif

// The largest number of a row of the left matrix lies from 2^4 to below 2^5, of the right one from
// 2^3 to below 2^4: 96 products of two rows, summed in float16, stay below its 65504, and what
// vanishes is 2^-27 of the largest and less.
constexpr float kLeftExponent = 4, kRightExponent = 3;
constexpr float kLeastExponent = -122;  // so that neither a factor nor its inverse overflows

// Eight rows of the left matrix or sixteen of the right one: two numbers of each side by side, in
// 32 bits, then the next two. Behind them one inverse factor for each row: what 1 stands for in it,
// NaN where a number of float16 is not finite. Numbers beyond the inputs are 0, rows that are not
// there anything.
struct Halves {
  uint8_t* data;
  int64_t groups;  // of two numbers
  int64_t rows;

  static int64_t groups_of(int64_t inputs) { return ceil_div(inputs, kHalfInputs) * 8; }
  static int64_t bytes(int64_t groups, int64_t rows) { return groups * rows * 4 + 64; }

  int64_t step() const { return rows * 4; }  // to the next two numbers
  float* inverse() const { return reinterpret_cast<float*>(data + groups * step()); }
  Halves block(int64_t index) const { return {data + index * bytes(groups, rows), groups, rows}; }
};

// Calls run(first, lanes) for each 16 numbers.
template <typename Run>
inline void over_lanes(int64_t count, Run&& run) {
  int64_t k = 0;
  for (; k + 16 <= count; k += 16) run(k, __mmask16{0xffff});
  if (k < count) run(k, first_lanes(count - k));
}

// The larger of `most` and |x|, both as integers: NaN is larger than infinity.
inline __m512i larger(__m512i most, __m512 x) {
  return _mm512_max_epi32(most, _mm512_castps_si512(_mm512_abs_ps(x)));
}

// Powers of two that bring 16 rows, by the largest of each, to an exponent; and their inverses.
inline __m512 factors(__m512i most, float exponent, __m512* inverse) {
  const __m512 largest = _mm512_castsi512_ps(most), one = _mm512_set1_ps(1);
  if (!kHasFactors) return *inverse = one;  // and the compiler leaves out the largest
  const __m512 least = _mm512_set1_ps(kLeastExponent);
  const __m512 up =
      _mm512_sub_ps(_mm512_max_ps(_mm512_getexp_ps(largest), least), _mm512_set1_ps(exponent));
  const __m512 poison = _mm512_mul_ps(largest, _mm512_setzero_ps());
  *inverse = _mm512_add_ps(_mm512_scalef_ps(one, up), poison);
  return _mm512_scalef_ps(one, _mm512_sub_ps(_mm512_setzero_ps(), up));
}

inline __m256i to_halves(__m512 numbers) {
#ifdef __AVX512FP16__
  return _mm512_cvtps_ph(numbers, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(numbers));
#endif
}

// One dense row to dense halves; returns its inverse factor.
template <typename T>
inline float round_row(const T* row, int64_t inputs, float exponent, uint8_t* out) {
  __m512i most = _mm512_setzero_si512();
  over_lanes(inputs,
             [&](int64_t k, __mmask16 lanes) { most = larger(most, load(row + k, lanes)); });
  __m512 inverse;
  const __m512 factor =
      factors(_mm512_set1_epi32(_mm512_reduce_max_epi32(most)), exponent, &inverse);
  over_lanes(inputs, [&](int64_t k, __mmask16 lanes) {
    const __m256i halves = to_halves(_mm512_mul_ps(load(row + k, lanes), factor));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + k * 2), halves);
  });
  return _mm512_cvtss_f32(inverse);
}

// Dense rows of halves to what a tile reads.
inline void interleave(const uint8_t* rows, Halves out) {
  for (int64_t first = 0; first < out.rows; first += 8) {
    for (int64_t g = 0; g < out.groups; g += 8) {
      Vec<float> pairs[8];
      for (int64_t i = 0; i < 8; ++i) {
        const uint8_t* const from = rows + ((first + i) * out.groups + g) * 4;
        pairs[i] = Vec<float>::load(reinterpret_cast<const float*>(from));
      }
      Vec<float>::transpose(pairs);
      for (int64_t i = 0; i < 8; ++i)
        pairs[i].store(reinterpret_cast<float*>(out.data + (g + i) * out.step() + first * 4));
    }
  }
}

// Up to sixteen columns, of which `of(k)` points to the numbers k: calls store(group, pairs of
// halves) for all groups and returns inverse factors. Their sums too, unless null.
template <typename Of, typename Store>
inline __m512 round_columns(int64_t count, int64_t inputs, float exponent, float* sums, Of&& of,
                            Store&& store) {
  const __mmask16 lanes = first_lanes(count);
  __m512i most = _mm512_setzero_si512();
  __m512 even = _mm512_setzero_ps(), odd = even;
  for (int64_t k = 0; k < inputs; ++k) {
    const __m512 x = load(of(k), lanes);
    most = larger(most, x);
    (k % 2 ? odd : even) = _mm512_add_ps(k % 2 ? odd : even, x);
  }
  if (sums) _mm512_mask_storeu_ps(sums, lanes, _mm512_add_ps(even, odd));
  __m512 inverse;
  const __m512 factor = factors(most, exponent, &inverse);
  const auto halves = [&](int64_t k) {
    if (k >= inputs) return _mm512_setzero_si512();
    return _mm512_cvtepu16_epi32(to_halves(_mm512_mul_ps(load(of(k), lanes), factor)));
  };
  for (int64_t g = 0; g < Halves::groups_of(inputs); ++g)
    store(g, _mm512_or_si512(halves(2 * g), _mm512_slli_epi32(halves(2 * g + 1), 16)));
  return inverse;
}

// The same to a block of the left matrix, or two for more than eight columns.
template <typename Of>
inline void pack_left_columns(int64_t count, int64_t inputs, float* sums, const Halves& out,
                              Of&& of) {
  const Halves second = count > kLeftRows ? out.block(1) : out;
  const auto put = [](void* to, __m256i half) {
    _mm256_storeu_si256(static_cast<__m256i*>(to), half);
  };
  const auto store = [&](int64_t g, __m512i pairs) {  // the first over what is not there
    put(second.data + g * out.step(), _mm512_extracti64x4_epi64(pairs, 1));
    put(out.data + g * out.step(), _mm512_castsi512_si256(pairs));
  };
  const __m512i inverse =
      _mm512_castps_si512(round_columns(count, inputs, kLeftExponent, sums, of, store));
  put(second.inverse(), _mm512_extracti64x4_epi64(inverse, 1));
  put(out.inverse(), _mm512_castsi512_si256(inverse));
}

// The same to a block of the right matrix.
template <typename Of>
inline void pack_columns(int64_t count, int64_t inputs, const Halves& out, Of&& of) {
  const __m512 inverse = round_columns(
      count, inputs, kRightExponent, nullptr, of,
      [&](int64_t g, __m512i pairs) { _mm512_storeu_si512(out.data + g * out.step(), pairs); });
  _mm512_storeu_ps(out.inverse(), inverse);
}

}  // namespace vitadapter::VITADAPTER_ISA
