// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// Heads of windows, packed in 16 bits as products read them, and products of their rows.
#pragma once

#include "common/half_columns.h"
#include "common/half_tile.h"
#include "window_attention/windows_cpu.h"

namespace vitadapter::VITADAPTER_ISA::window_attention {

// All tokens as rows of the right matrix, times `scale`. Memory for sixteen of halves.
inline void pack_tokens(const Window& window, Rows<const BFloat16> from, int64_t channels,
                        float scale, uint8_t* rows, const Halves& out) {
  for (int64_t first = 0; first < window.tokens; first += kRightRows) {
    const Halves block = out.block(first / kRightRows);
    for (int64_t i = 0; i < least(kRightRows, window.tokens - first); ++i)
      block.inverse()[i] = scale * round_row(from.of(window, first + i), channels, kRightExponent,
                                             rows + i * out.groups * 4);
    interleave(rows, block);
  }
}

// All channels of tokens begin ... begin + count - 1 as rows of the right matrix, times `scale`.
inline void pack_channels(const Window& window, Rows<const BFloat16> from, int64_t begin,
                          int64_t count, int64_t channels, float scale, ColumnPacker& columns,
                          const Halves& out) {
  columns.pack(channels, count, kRightExponent, nullptr, out,
               [&](int64_t i) { return from.of(window, begin + i); });
  for (int64_t b = 0; b < ceil_div(channels, kRightRows); ++b) {
    float* const inverse = out.block(b).inverse();
    _mm512_storeu_ps(inverse, _mm512_mul_ps(_mm512_loadu_ps(inverse), _mm512_set1_ps(scale)));
  }
}

// Dense rows of halves, `row` bytes apart, with their inverse factors, times all rows of the right
// matrix: calls store(row, first column, 16 products).
template <typename Store>
inline void multiply_rows(const uint8_t* rows, int64_t row, const float* inverse, int64_t count,
                          const Halves& right, int64_t columns, Store&& store) {
  over_blocks(ceil_div(columns, kRightRows), [&](auto many, int64_t block) {
    for (int64_t i = 0; i < count; i += kLeftRows) {
      const auto tile = multiply_halves<many>(rows + i * row, row, 4, right.block(block));
      for (int b = 0; b < many; ++b) {
        const __m512 scale = _mm512_loadu_ps(right.block(block + b).inverse());
        for (int r = 0; r < kLeftRows && i + r < count; ++r)
          store(
              i + r, (block + b) * kRightRows,
              _mm512_mul_ps(tile.sums(r, b), _mm512_mul_ps(scale, _mm512_set1_ps(inverse[i + r]))));
      }
    }
  });
}

// Tokens begin ... begin + count - 1 times all of the right matrix, to rows `stride` apart. Memory
// for the tokens as halves and for their inverse factors.
inline void multiply_tokens(const Window& window, Rows<const BFloat16> from, int64_t begin,
                            int64_t count, int64_t channels, const Halves& right, uint8_t* rows,
                            float* inverse, float* to, int64_t stride) {
  const int64_t row = right.groups * 4;
  for (int64_t i = 0; i < count; ++i)
    inverse[i] = round_row(from.of(window, begin + i), channels, kLeftExponent, rows + i * row);
  multiply_rows(rows, row, inverse, count, right, window.tokens,
                [&](int64_t i, int64_t column, __m512 products) {
                  _mm512_storeu_ps(to + i * stride + column, products);
                });
}

}  // namespace vitadapter::VITADAPTER_ISA::window_attention
