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
constexpr int32_t kLeftExponent = 4, kRightExponent = 3;
constexpr int32_t kLeastExponentBits = 5;  // of float32, so that factors do not overflow
constexpr int64_t kAhead = 4096;           // bytes from what is read to what is asked for

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

// Powers of two, of 16 rows by the largest number of each, that bring it to an exponent.
struct Factors {
  __m512i shift;  // they are 2^-shift, and neither they nor their inverses overflow

  Factors(__m512i most, int32_t exponent)
      : shift(_mm512_sub_epi32(exponent_bits(most), _mm512_set1_epi32(127 + exponent))) {}

  static __m512i exponent_bits(__m512i most) {
    return _mm512_max_epi32(_mm512_srli_epi32(most, 23), _mm512_set1_epi32(kLeastExponentBits));
  }
  static __m512 two_to(__m512i power) {
    const __m512i bits = _mm512_add_epi32(power, _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 23));
  }

  __m512 factor() const { return two_to(_mm512_sub_epi32(_mm512_setzero_si512(), shift)); }

  // What 1 stands for: NaN where `most` is not finite.
  __m512 inverse(__m512i most) const {
    return _mm512_add_ps(two_to(shift),
                         _mm512_mul_ps(_mm512_castsi512_ps(most), _mm512_setzero_ps()));
  }
};

inline __m256i to_halves(__m512 numbers) {
#ifdef __AVX512FP16__
  return _mm512_cvtps_ph(numbers, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(numbers));
#endif
}

// One dense row to dense halves; returns its inverse factor.
template <typename T>
inline float round_row(const T* row, int64_t inputs, int32_t exponent, uint8_t* out) {
  __m512i most = _mm512_setzero_si512();
  const auto follow = [&](int64_t k, __mmask16 lanes) {
    _mm_prefetch(row + k + kAhead / sizeof(T), _MM_HINT_T0);
    most = larger(most, load(row + k, lanes));
  };
  if (kHasFactors) over_lanes(inputs, follow);
  most = _mm512_set1_epi32(_mm512_reduce_max_epi32(most));
  const Factors factors(most, exponent);
  const __m512 factor = kHasFactors ? factors.factor() : _mm512_set1_ps(1);
  over_lanes(inputs, [&](int64_t k, __mmask16 lanes) {
    const __m256i halves = to_halves(_mm512_mul_ps(load(row + k, lanes), factor));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + k * 2), halves);
  });
  return kHasFactors ? _mm512_cvtss_f32(factors.inverse(most)) : 1;
}

#ifdef __AVX512FP16__
// 32 numbers of bfloat16 to float16, times factors of 16 rows, of which two lie side by side: bits
// are moved so that the largest exponent is the largest of float16, then float16 is multiplied.
// What vanishes in the first step would in the second.
class BFloatToHalf {
 public:
  BFloatToHalf(__m512i most, int32_t exponent) {
    constexpr int32_t kMost = 30;  // bits of the largest exponent
    const __m512i bits = Factors::exponent_bits(most), zero = _mm512_setzero_si512();
    const __m512i less = _mm512_max_epi32(_mm512_sub_epi32(bits, _mm512_set1_epi32(kMost)), zero);
    // Float16 has 15 where float32 has 127.
    const __m512i power =
        _mm512_add_epi32(_mm512_sub_epi32(less, bits), _mm512_set1_epi32(15 + exponent + 15));
    less_ = twice(_mm512_slli_epi32(less, 7));
    times_ = _mm512_castsi512_ph(twice(_mm512_slli_epi32(power, 10)));
  }

  __m512i operator()(__m512i numbers) const {
    const __m512i sign = _mm512_set1_epi16(static_cast<int16_t>(0x8000));
    const __m512i moved = _mm512_subs_epu16(_mm512_andnot_si512(sign, numbers), less_);
    const __m512i signs = _mm512_and_si512(numbers, sign);
    const __m512i bits = _mm512_or_si512(_mm512_slli_epi16(moved, 3), signs);
    return _mm512_castph_si512(_mm512_mul_ph(_mm512_castsi512_ph(bits), times_));
  }

  // The larger of `most` and the numbers without their signs.
  static __m512i larger(__m512i most, __m512i numbers) {
    return _mm512_max_epu16(most, _mm512_and_si512(numbers, _mm512_set1_epi16(0x7fff)));
  }

  // The larger of each two, in float32.
  static __m512i largest(__m512i most) {
    return _mm512_max_epi32(_mm512_slli_epi32(most, 16),
                            _mm512_and_si512(most, _mm512_set1_epi32(0x7fff0000)));
  }

 private:
  static __m512i twice(__m512i rows) { return _mm512_or_si512(rows, _mm512_slli_epi32(rows, 16)); }

  __m512i less_;
  __m512h times_;
};

inline float round_row(const BFloat16* row, int64_t inputs, int32_t exponent, uint8_t* out) {
  const auto over_32 = [&](auto&& run) {
    int64_t k = 0;
    for (; k + 32 <= inputs; k += 32) run(k, ~__mmask32{0}, ~__mmask32{0});
    const auto lanes = static_cast<__mmask32>((uint64_t{1} << (inputs - k)) - 1);
    if (k < inputs) run(k, lanes, inputs - k > 16 ? ~__mmask32{0} : __mmask32{0xffff});
  };
  __m512i most = _mm512_setzero_si512();
  over_32([&](int64_t k, __mmask32 lanes, __mmask32) {
    _mm_prefetch(row + k + kAhead / sizeof(BFloat16), _MM_HINT_T0);
    most = BFloatToHalf::larger(most, _mm512_maskz_loadu_epi16(lanes, row + k));
  });
  most = _mm512_set1_epi32(_mm512_reduce_max_epi32(BFloatToHalf::largest(most)));
  const BFloatToHalf convert(most, exponent);
  over_32([&](int64_t k, __mmask32 lanes, __mmask32 there) {
    const __m512i halves = convert(_mm512_maskz_loadu_epi16(lanes, row + k));
    _mm512_mask_storeu_epi16(out + k * 2, there, halves);
  });
  return _mm512_cvtss_f32(Factors(most, exponent).inverse(most));
}
#endif

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

}  // namespace vitadapter::VITADAPTER_ISA
