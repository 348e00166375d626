// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// Rows of float32 in; out, the same in 256 steps each from the least number to the largest.
#pragma once

#include <cfloat>
#include <cmath>

#include "common/gelu_cpu.h"
#include "common/lanes.h"
#include "int8_linear/params.h"

namespace vitadapter::VITADAPTER_ISA {

// Of a row: what a step is worth, and which step is 0. NaN where a number is not finite.
struct RowScale {
  float step;
  int32_t zero;
};

// Where the steps of a row lie, and its scale behind them.
struct Steps {
  int64_t groups;  // of four
  void* first;

  int64_t stride() const { return groups * kInt8Group + static_cast<int64_t>(sizeof(RowScale)); }
  uint8_t* row(int64_t index) const { return static_cast<uint8_t*>(first) + index * stride(); }
  RowScale* scale(int64_t index) const {
    return reinterpret_cast<RowScale*>(row(index) + groups * kInt8Group);
  }
};

// Writes GELU of a row.
inline void activate(const float* row, int64_t count, float* out) {
  for (int64_t k = 0; k < count; k += 16) {
    const __mmask16 lanes = first_lanes(count - k);
    const Wide<float> x{_mm512_maskz_loadu_ps(lanes, row + k)};
    _mm512_mask_storeu_ps(out + k, lanes, gelu<false>(x).v);
  }
}

inline void quantize(const float* row, int64_t count, int64_t groups, uint8_t* out,
                     RowScale* scale) {
  // 0 is among them, so that it is exactly one of the steps.
  __m512 low = _mm512_setzero_ps(), high = low, poison = low;
  for (int64_t k = 0; k < count; k += 16) {
    const __m512 x = _mm512_maskz_loadu_ps(first_lanes(count - k), row + k);
    low = _mm512_min_ps(low, x);
    high = _mm512_max_ps(high, x);
    poison = _mm512_fmadd_ps(x, _mm512_setzero_ps(), poison);  // NaN of what is not finite
  }
  const float least = _mm512_reduce_min_ps(low), most = _mm512_reduce_max_ps(high);
  const float step = most / 255 - least / 255;
  const bool has_steps = step >= FLT_MIN && step <= FLT_MAX;  // else all is 0, or not finite
  const float inverse = has_steps ? 1 / step : 0;
  const int32_t zero = has_steps ? static_cast<int32_t>(std::nearbyint(-least * inverse)) : 0;
  *scale = {step + _mm512_reduce_add_ps(poison), zero};
  const __m512i none = _mm512_setzero_si512(), shift = _mm512_set1_epi32(zero);
  const __m512 by = _mm512_set1_ps(inverse);
  for (int64_t k = 0; k < groups * kInt8Group; k += 16) {
    const __m512 x = _mm512_maskz_loadu_ps(first_lanes(count - k), row + k);
    const __m512i steps = _mm512_add_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(x, by)), shift);
    const __m512i inside = _mm512_max_epi32(steps, none);
    _mm512_mask_cvtusepi32_storeu_epi8(out + k, first_lanes(groups * kInt8Group - k), inside);
  }
}

}  // namespace vitadapter::VITADAPTER_ISA
