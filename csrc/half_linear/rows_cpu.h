// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// Rows in; out, 16 of them as the product reads them, normalized or activated on the way.
#pragma once

#include "common/gelu_cpu.h"
#include "common/half_columns.h"
#include "half_linear/params.h"

namespace vitadapter::VITADAPTER_ISA {

// The sum of term(first, lanes) over a row: four sums at once, since one would wait for each
// addition.
template <typename Term>
inline float sum_over(int64_t count, Term&& term) {
  __m512 sums[4];
  for (__m512& sum : sums) sum = _mm512_setzero_ps();
  int64_t k = 0;
  for (; k + 64 <= count; k += 64) {
    for (int i = 0; i < 4; ++i)
      sums[i] = _mm512_add_ps(sums[i], term(k + i * 16, __mmask16{0xffff}));
  }
  for (; k < count; k += 16) sums[0] = _mm512_add_ps(sums[0], term(k, first_lanes(count - k)));
  return _mm512_reduce_add_ps(
      _mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3])));
}

// Row `index` less its mean, over its deviation, times weight plus bias: what token_rows does, in
// wider vectors and from either dtype.
template <typename T>
inline void normalize(const T* row, int64_t index, int64_t inputs, const HalfNorm& norm,
                      float* out) {
  const float mean = sum_over(inputs,
                              [&](int64_t k, __mmask16 lanes) {
                                const __m512 x = load(row + k, lanes);
                                _mm512_storeu_ps(out + k, x);
                                return x;
                              }) /
                     static_cast<float>(inputs);
  const __m512 center = _mm512_set1_ps(mean);
  const float squares = sum_over(inputs, [&](int64_t k, __mmask16 lanes) {
    const __m512 away = _mm512_maskz_sub_ps(lanes, _mm512_loadu_ps(out + k), center);
    return _mm512_mul_ps(away, away);
  });
  const double variance = static_cast<double>(squares) / static_cast<double>(inputs);
  const float rstd = static_cast<float>(1 / std::sqrt(variance + norm.eps));
  norm.mean[index] = mean;
  norm.rstd[index] = rstd;
  over_lanes(inputs, [&](int64_t k, __mmask16 lanes) {
    const __m512 away = _mm512_sub_ps(_mm512_loadu_ps(out + k), center);
    const __m512 unit = _mm512_mul_ps(away, _mm512_set1_ps(rstd));
    const __m512 weight = load(norm.weight + k, lanes), bias = load(norm.bias + k, lanes);
    _mm512_storeu_ps(out + k, _mm512_fmadd_ps(unit, weight, bias));
  });
}

template <typename T>
inline void activate(const T* row, int64_t inputs, float* out) {
  over_lanes(inputs, [&](int64_t k, __mmask16 lanes) {
    _mm512_storeu_ps(out + k, gelu<false>(Wide<float>{load(row + k, lanes)}).v);
  });
}

// Rows first ... first + 15 of the left matrix, as far as they are there, to two blocks. Memory for
// one row in float32, and for eight of halves.
inline void pack_left(const HalfLinearParams& p, int64_t first, float* changed, uint8_t* rows,
                      ColumnPacker& columns, const Halves& out) {
  const int64_t count = least(2 * kLeftRows, p.num_rows - first);
  const Halves second = count > kLeftRows ? out.block(1) : out;
  float* const sums = p.sums ? p.sums + first : nullptr;
  with_numbers(p.x.dtype, p.x.data, [&](auto* data) {
    if (p.x.input_stride != 1) {
      columns.pack(count, p.num_inputs, kLeftExponent, sums, out,
                   [&](int64_t k) { return data + first + k * p.x.input_stride; });
      return;
    }
    for (int64_t i = 0; i < count; ++i) {
      const auto* row = data + (first + i) * p.x.row_stride;
      const Halves& block = i < kLeftRows ? out : second;
      const int64_t within = i % kLeftRows;
      uint8_t* const to = rows + within * out.groups * 4;
      if (p.has_gelu) activate(row, p.num_inputs, changed);
      if (p.norm.weight) normalize(row, first + i, p.num_inputs, p.norm, changed);
      block.inverse()[within] = p.has_gelu || p.norm.weight
                                    ? round_row(changed, p.num_inputs, kLeftExponent, to)
                                    : round_row(row, p.num_inputs, kLeftExponent, to);
      if (sums)
        sums[i] = sum_over(p.num_inputs,
                           [&](int64_t k, __mmask16 lanes) { return load(row + k, lanes); });
      if (within == kLeftRows - 1 || i == count - 1) interleave(rows, block);
    }
  });
}

// Rows first ... first + count - 1 of the right one. Memory for sixteen of halves.
inline void pack_right(const HalfLinearParams& p, int64_t first, int64_t count, uint8_t* rows,
                       ColumnPacker& columns, const Halves& out) {
  with_numbers(p.weight.dtype, p.weight.data, [&](auto* data) {
    if (p.weight.input_stride != 1)
      return columns.pack(count, p.num_inputs, kRightExponent, nullptr, out,
                          [&](int64_t k) { return data + first + k * p.weight.input_stride; });
    for (int64_t i = 0; i < count; ++i) {
      const Halves block = out.block(i / kRightRows);
      block.inverse()[i % kRightRows] =
          round_row(data + (first + i) * p.weight.row_stride, p.num_inputs, kRightExponent,
                    rows + i % kRightRows * out.groups * 4);
      if (i % kRightRows == kRightRows - 1 || i == count - 1) interleave(rows, block);
    }
  });
}

}  // namespace vitadapter::VITADAPTER_ISA
