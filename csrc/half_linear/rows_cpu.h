// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// Rows of float32 or bfloat16 in; out, the same in float16, each times a power of two of its own.
#pragma once

#include "common/gelu_cpu.h"
#include "common/lanes.h"
#include "half_linear/params.h"

namespace vitadapter::VITADAPTER_ISA {

// The largest number of a row lies from 2^4 to below 2^5: 32 products of two rows, summed in
// float16, stay below its 65504, and what vanishes is 2^-28 of the largest and less.
constexpr float kExponent = 4;
constexpr float kLeastExponent = -122;  // so that neither a factor nor its inverse overflows

// Sixteen rows as a tile of the product reads them: 32 bits are two numbers of a row, those of
// eight rows lie side by side, for weights of sixteen. Behind them 16 inverse factors, NaN where a
// number is not finite.
struct Packed {
  uint8_t* data;
  int64_t groups;  // of two numbers
  bool is_weight;

  int64_t step() const { return is_weight ? 64 : 32; }             // to the next two numbers
  int64_t second() const { return is_weight ? 32 : groups * 32; }  // to the second eight rows
  static int64_t groups_of(int64_t inputs) { return (inputs + kHalfInputs - 1) / kHalfInputs * 8; }
  static int64_t bytes(int64_t groups) { return groups * 64 + 64; }
  float* inverse() const { return reinterpret_cast<float*>(data + groups * 64); }
};

// Powers of two of 16 rows, by the largest absolute numbers of each.
inline __m512 factors(__m512 largest, __m512 poison, float* inverse) {
  const __m512 exponent =
      _mm512_sub_ps(_mm512_max_ps(_mm512_getexp_ps(largest), _mm512_set1_ps(kLeastExponent)),
                    _mm512_set1_ps(kExponent));
  const __m512 one = _mm512_set1_ps(1);
  _mm512_storeu_ps(inverse, _mm512_add_ps(_mm512_scalef_ps(one, exponent), poison));
  return _mm512_scalef_ps(one, _mm512_sub_ps(_mm512_setzero_ps(), exponent));
}

inline __m256i to_halves(__m512 numbers) {
  return _mm512_cvtps_ph(numbers, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

// Rows that are dense. Buffer: [16, groups * 2].
template <bool kGelu, typename T>
void pack_dense(const T* rows, int64_t stride, int count, int64_t inputs, float* buffer,
                Packed out) {
  const int64_t padded = out.groups * 2;
  alignas(64) float largest[16] = {}, poison[16] = {}, factor[16];
  for (int i = 0; i < count; ++i) {
    __m512 most = _mm512_setzero_ps(), bad = most;
    for (int64_t k = 0; k < padded; k += 16) {
      __m512 x = load(rows + i * stride + k, first_lanes(inputs - k));
      if constexpr (kGelu) x = gelu<false>(Wide<float>{x}).v;
      _mm512_storeu_ps(buffer + i * padded + k, x);
      most = _mm512_max_ps(most, _mm512_abs_ps(x));
      bad = _mm512_fmadd_ps(x, _mm512_setzero_ps(), bad);
    }
    largest[i] = _mm512_reduce_max_ps(most);
    poison[i] = _mm512_reduce_add_ps(bad);
  }
  _mm512_store_ps(factor, factors(_mm512_load_ps(largest), _mm512_load_ps(poison), out.inverse()));
  for (int first = 0; first < count; first += 8) {
    uint8_t* const to = out.data + (first ? out.second() : 0);
    for (int64_t k = 0; k < padded; k += 16) {
      Vec<float> pairs[8];  // each of 8 pairs of halves of a row
      for (int i = 0; i < 8; ++i) {
        const int row = first + i < count ? first + i : count - 1;
        const __m512 x = _mm512_loadu_ps(buffer + row * padded + k);
        pairs[i].v = _mm256_castsi256_ps(to_halves(_mm512_mul_ps(x, _mm512_set1_ps(factor[row]))));
      }
      Vec<float>::transpose(pairs);
      for (int i = 0; i < 8; ++i)
        pairs[i].store(reinterpret_cast<float*>(to + (k / 2 + i) * out.step()));
    }
  }
}

// Rows that are columns of dense memory.
template <typename T>
void pack_columns(const T* rows, int64_t stride, int count, int64_t inputs, Packed out) {
  const __mmask16 lanes = first_lanes(count);
  __m512 most = _mm512_setzero_ps(), bad = most;
  for (int64_t k = 0; k < inputs; ++k) {
    const __m512 x = load(rows + k * stride, lanes);
    most = _mm512_max_ps(most, _mm512_abs_ps(x));
    bad = _mm512_fmadd_ps(x, _mm512_setzero_ps(), bad);
  }
  const __m512 factor = factors(most, bad, out.inverse());
  const auto halves = [&](int64_t k) {
    const __m512 x = load(rows + k * stride, k < inputs ? lanes : __mmask16{0});
    return _mm512_cvtepu16_epi32(to_halves(_mm512_mul_ps(x, factor)));
  };
  for (int64_t g = 0; g < out.groups; ++g) {
    const __m512i pairs = _mm512_or_si512(halves(2 * g), _mm512_slli_epi32(halves(2 * g + 1), 16));
    uint8_t* const to = out.data + g * out.step();
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_castsi512_si256(pairs));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + out.second()),
                        _mm512_extracti64x4_epi64(pairs, 1));
  }
}

// Rows first ... first + count - 1, at most 16. Buffer as pack_dense wants it.
inline void pack(const HalfRows& rows, int64_t first, int64_t left, int64_t inputs, bool has_gelu,
                 float* buffer, Packed out) {
  const int count = static_cast<int>(left < kHalfRows ? left : kHalfRows);
  with_numbers(rows.dtype, rows.data, [&](auto* data) {
    data += first * rows.row_stride;
    if (rows.input_stride != 1)
      pack_columns(data, rows.input_stride, count, inputs, out);
    else if (has_gelu)
      pack_dense<true>(data, rows.row_stride, count, inputs, buffer, out);
    else
      pack_dense<false>(data, rows.row_stride, count, inputs, buffer, out);
  });
}

}  // namespace vitadapter::VITADAPTER_ISA
