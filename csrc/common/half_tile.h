// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// A tile of a matrix product of 16 bits, at twice the multiply-adds of float32.
//
// Its sums are in registers, 8 rows and 48 channels in 24 of them: each step is a load of two
// inputs of 16 channels and one of two inputs of a row, for 32 multiply-adds. AVX512_FP16 has sums
// of float16: after 48 of these steps those of the two inputs are added and go to float32, so 96
// products are summed in float16; the error is that of rounding to 10 bits, where bfloat16 has 8.
// AVX512_BF16 has sums of float32.
#pragma once

#include <type_traits>

#include "common/halves.h"

namespace vitadapter::VITADAPTER_ISA {

constexpr int kTileBlocks = 3;  // the most; of 16 rows of the right matrix
constexpr int64_t kSteps = 48;  // whose sums stay in registers

#ifdef __AVX512FP16__
using HalfSums = __m512h;

inline HalfSums multiply_add(__m512i weights, int32_t inputs, HalfSums sums) {
  const __m512h right = _mm512_castsi512_ph(weights);
  return _mm512_fmadd_ph(right, _mm512_castsi512_ph(_mm512_set1_epi32(inputs)), sums);
}

// Adds `factor` times the sums of two inputs each. Float16 has the lower bits of float32's
// exponent: where its bits lie there, the number is 2^-112 of what is meant. (Infinity and NaN are
// not: their rows have inverse factors of NaN.)
inline __m512 add_sums(HalfSums sums, float factor, __m512 to) {
  const __m512i bits = _mm512_set1_epi32(static_cast<int32_t>(0x8fffe000));
  const __m512i swapped = _mm512_rol_epi32(_mm512_castph_si512(sums), 16);
  const __m512h both = _mm512_add_ph(sums, _mm512_castsi512_ph(swapped));
  const __m512i half = _mm512_srai_epi32(_mm512_castph_si512(both), 3);
  const __m512 number = _mm512_castsi512_ps(_mm512_and_si512(half, bits));
  return _mm512_fmadd_ps(number, _mm512_set1_ps(factor * 0x1p112f), to);
}
#else
using HalfSums = __m512;

inline HalfSums multiply_add(__m512i weights, int32_t inputs, HalfSums sums) {
  const __m512i left = _mm512_set1_epi32(inputs);
  return _mm512_dpbf16_ps(sums, reinterpret_cast<__m512bh>(weights),
                          reinterpret_cast<__m512bh>(left));
}

inline __m512 add_sums(HalfSums sums, float factor, __m512 to) {
  return _mm512_fmadd_ps(sums, _mm512_set1_ps(factor), to);
}
#endif

// Eight rows times blocks of sixteen, whose sums stay in registers and on the stack.
template <int kBlocks>
class HalfTile {
 public:
  HalfTile() {
    for (auto& row : sums_) {
      for (__m512& sum : row) sum = _mm512_setzero_ps();
    }
  }

  // Adds `factor` times the products of at most kSteps groups. Groups of the left matrix lie
  // `group_step` bytes apart, its rows `row_step`, blocks of the right one `next_block`.
  void add(const uint8_t* left, int64_t row_step, int64_t group_step, const uint8_t* right,
           int64_t next_block, int64_t groups, float factor) {
    HalfSums part[kLeftRows][kBlocks];
    for (auto& row : part) {
      for (HalfSums& sum : row) sum = HalfSums{};
    }
    for (int64_t g = 0; g < groups; ++g) {
      __m512i weights[kBlocks];
      for (int b = 0; b < kBlocks; ++b) weights[b] = _mm512_loadu_si512(right + b * next_block);
      for (int r = 0; r < kLeftRows; ++r) {
        int32_t two;
        __builtin_memcpy(&two, left + r * row_step, sizeof two);
        for (int b = 0; b < kBlocks; ++b) part[r][b] = multiply_add(weights[b], two, part[r][b]);
      }
      left += group_step;
      right += kRightRows * 4;
    }
    for (int r = 0; r < kLeftRows; ++r) {
      for (int b = 0; b < kBlocks; ++b) sums_[r][b] = add_sums(part[r][b], factor, sums_[r][b]);
    }
  }

  __m512 sums(int row, int block) const { return sums_[row][block]; }

 private:
  __m512 sums_[kLeftRows][kBlocks];
};

// All products of eight rows, which lie as add() reads them, and some blocks of packed ones,
// without the factors of either.
template <int kBlocks>
inline HalfTile<kBlocks> multiply_halves(const uint8_t* left, int64_t row_step, int64_t group_step,
                                         const Halves& right) {
  const int64_t next_block = Halves::bytes(right.groups, kRightRows);
  HalfTile<kBlocks> tile;
  for (int64_t g = 0; g < right.groups; g += kSteps) {
    tile.add(left + g * group_step, row_step, group_step, right.data + g * right.step(), next_block,
             least(kSteps, right.groups - g), 1);
  }
  return tile;
}

// Calls run(number of blocks, first block) for all blocks of a strip, two and two of the last four.
template <typename Run>
inline void over_blocks(int64_t blocks, Run&& run) {
  for (int64_t b = 0, more; (more = blocks - b) > 0;) {
    if (more >= kTileBlocks && more != 4) {
      run(std::integral_constant<int, kTileBlocks>{}, b);
      b += kTileBlocks;
    } else if (more >= 2) {
      run(std::integral_constant<int, 2>{}, b);
      b += 2;
    } else {
      run(std::integral_constant<int, 1>{}, b);
      b += 1;
    }
  }
}

}  // namespace vitadapter::VITADAPTER_ISA
