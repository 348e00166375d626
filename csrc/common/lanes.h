// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// Some of the 16 numbers of an AVX-512 register, in memory float32 or bfloat16, and how many
// registers there are.
#pragma once

#include <immintrin.h>

#include "common/dtype.h"

namespace vitadapter::VITADAPTER_ISA {

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline __mmask16 first_lanes(int64_t count) {
  return count >= 16 ? 0xffff : count <= 0 ? 0 : static_cast<__mmask16>((1u << count) - 1);
}

#ifdef __AVX512BW__
inline __m512 load(const float* from, __mmask16 lanes) {
  return _mm512_maskz_loadu_ps(lanes, from);
}

inline __m512 load(const BFloat16* from, __mmask16 lanes) {
  const __m256i bits = _mm256_maskz_loadu_epi16(lanes, from);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

inline void store(float* to, __mmask16 lanes, __m512 v) { _mm512_mask_storeu_ps(to, lanes, v); }

inline void store(BFloat16* to, __mmask16 lanes, __m512 v) {
#ifdef __AVX512BF16__  // rounds what float32 has below its normal range to zero
  _mm256_mask_storeu_epi16(to, lanes, reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v)));
#else
  const __m512i bits = _mm512_castps_si512(v), one = _mm512_set1_epi32(1);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), one);
  const __m512i bias = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
  const __mmask16 is_nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  const __m512i rounded = _mm512_mask_mov_epi32(_mm512_add_epi32(bits, bias), is_nan, quiet);
  _mm256_mask_storeu_epi16(to, lanes, _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
#endif
}

// Calls run(typed pointer) for numbers of float32 or bfloat16.
template <typename Run>
inline void with_numbers(DType dtype, const void* base, Run&& run) {
  if (dtype == DType::kBFloat16)
    run(static_cast<const BFloat16*>(base));
  else
    run(static_cast<const float*>(base));
}
#endif

}  // namespace vitadapter::VITADAPTER_ISA
