// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// First x is packed in float16, one task 16 rows of it. Then one task is a block of rows times a
// strip of channels, whose weights it packs. A tile of 8 rows and 48 channels has its sums of
// float16 in 24 registers: each step of the product is a load of two inputs of 16 channels and one
// of two inputs of a row, for 32 multiply-adds. After 32 of these steps the sums go to float32,
// those of the two inputs apart, so 32 products at most are summed in float16: the error is that
// of rounding to 10 bits, where bfloat16 has 8.
//
// Multiply-adds a second of one core of an Intel Xeon (model 207): float32 88e9 at best, this tile
// 155e9; with sums of 16 steps 126e9, with such of 64 151e9 to 166e9.
#include "common/scratch.h"
#include "common/workers.h"
#include "half_linear/rows_cpu.h"

namespace vitadapter::VITADAPTER_ISA {
namespace {

constexpr int kTileRows = 8, kTileBlocks = 3;
constexpr int64_t kSteps = 32;                       // that are summed in float16
constexpr int64_t kMostRows = 128, kMostBlocks = 6;  // of a piece of x, of a strip
constexpr int64_t kLeastRows = 64;                   // of a task that packs weights

struct Task {
  const HalfLinearParams& p;
  int64_t groups;
  int64_t rows, blocks;  // of one task of the product
  int64_t strips;

  Packed x(int64_t block) const {
    return {static_cast<uint8_t*>(p.halves) + block * Packed::bytes(groups), groups, false};
  }
};

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

void pack_x(void* context, TaskQueue& queue) {
  const Task& task = *static_cast<const Task*>(context);
  const HalfLinearParams& p = task.p;
  Scratch<float> buffer(p.x.input_stride == 1 ? kHalfRows * 2 * task.groups : 0);
  for (int64_t index; queue.take(&index);) {
    const int64_t first = index * kHalfRows;
    pack(p.x, first, p.num_rows - first, p.num_inputs, p.has_gelu, buffer, task.x(index));
  }
}

// Sums of products of a tile, [rows, blocks, 16].
template <int kBlocks>
void multiply(const uint8_t* x, const uint8_t* weight, int64_t groups, float* out) {
  const int64_t next_block = Packed::bytes(groups);
  // Float16 has the lower bits of float32's exponent: where its bits lie there, the number is
  // 2^-112 of what is meant. (Infinity and NaN are not: their rows have inverse factors of NaN.)
  const __m512i bits = _mm512_set1_epi32(static_cast<int32_t>(0x8fffe000));
  const __m512 meant = _mm512_set1_ps(0x1p112f);
  __m512 sums[kTileRows][kBlocks];
  for (int r = 0; r < kTileRows; ++r) {
    for (int b = 0; b < kBlocks; ++b) sums[r][b] = _mm512_setzero_ps();
  }
  int64_t g = 0;
  do {
    __m512h part[kTileRows][kBlocks];
    for (int r = 0; r < kTileRows; ++r) {
      for (int b = 0; b < kBlocks; ++b) part[r][b] = _mm512_setzero_ph();
    }
    const int64_t end = g + kSteps < groups ? g + kSteps : groups;
    do {
      __m512h weights[kBlocks];
      for (int b = 0; b < kBlocks; ++b)
        weights[b] = _mm512_castsi512_ph(_mm512_loadu_si512(weight + b * next_block + g * 64));
      for (int r = 0; r < kTileRows; ++r) {
        int32_t two;
        __builtin_memcpy(&two, x + g * 32 + r * 4, sizeof two);
        const __m512h inputs = _mm512_castsi512_ph(_mm512_set1_epi32(two));
        for (int b = 0; b < kBlocks; ++b)
          part[r][b] = _mm512_fmadd_ph(weights[b], inputs, part[r][b]);
      }
    } while (++g < end);
    for (int r = 0; r < kTileRows; ++r) {
      for (int b = 0; b < kBlocks; ++b) {
        const __m512i pairs = _mm512_castph_si512(part[r][b]);
        const __m512i odd = _mm512_srai_epi32(pairs, 3);
        const __m512i even = _mm512_srai_epi32(_mm512_slli_epi32(pairs, 16), 3);
        for (__m512i half : {odd, even}) {
          const __m512 number = _mm512_castsi512_ps(_mm512_and_si512(half, bits));
          sums[r][b] = _mm512_fmadd_ps(number, meant, sums[r][b]);
        }
      }
    }
  } while (g < groups);
  for (int r = 0; r < kTileRows; ++r) {
    for (int b = 0; b < kBlocks; ++b) _mm512_store_ps(out + (r * kBlocks + b) * 16, sums[r][b]);
  }
}

// A row of a tile: `sums` times `scale` plus `shift`, and what is added.
template <typename Plus, typename Out>
void finish(const float* sums, __m512 scale, __m512 shift, const Plus* plus, __mmask16 lanes,
            Out* out) {
  __m512 result = _mm512_fmadd_ps(_mm512_load_ps(sums), scale, shift);
  if (plus) result = _mm512_add_ps(result, load(plus, lanes));
  store(out, lanes, result);
}

// Rows begin ... end - 1 times some blocks of channels, packed.
template <int kBlocks>
void multiply_rows(const Task& task, int64_t begin, int64_t end, int64_t channel, Packed weight) {
  const HalfLinearParams& p = task.p;
  alignas(64) float tile[kTileRows * kBlocks * 16];
  for (int64_t row = begin; row < end; row += kTileRows) {
    const Packed x = task.x(row / kHalfRows);
    const int64_t within = row % kHalfRows;
    multiply<kBlocks>(x.data + (within ? x.second() : 0), weight.data, task.groups, tile);
    const int rows = static_cast<int>(least(kTileRows, end - row));
    for (int b = 0; b < kBlocks; ++b) {
      const int64_t c = channel + b * kHalfRows;
      const __mmask16 lanes = first_lanes(p.num_outputs - c);
      const Packed block{weight.data + b * Packed::bytes(task.groups), task.groups, true};
      __m512 scales = _mm512_maskz_loadu_ps(lanes, block.inverse());
      __m512 shift = p.bias ? _mm512_maskz_loadu_ps(lanes, p.bias + c) : _mm512_setzero_ps();
      if (p.gamma) {
        const __m512 gamma = _mm512_maskz_loadu_ps(lanes, p.gamma + c);
        scales = _mm512_mul_ps(scales, gamma);
        shift = _mm512_mul_ps(shift, gamma);
      }
      with_numbers(p.plus_dtype, p.plus, [&](auto* plus) {
        with_numbers(p.out_dtype, p.out, [&](auto* typed) {
          using Out = std::remove_const_t<std::remove_pointer_t<decltype(typed)>>;
          for (int r = 0; r < rows; ++r) {
            const int64_t at = (row + r) * p.num_outputs + c;
            const __m512 scale = _mm512_mul_ps(scales, _mm512_set1_ps(x.inverse()[within + r]));
            finish(tile + (r * kBlocks + b) * 16, scale, shift, plus ? plus + at : nullptr, lanes,
                   const_cast<Out*>(typed) + at);
          }
        });
      });
    }
  }
}

void multiply_blocks(void* context, TaskQueue& queue) {
  const Task& task = *static_cast<const Task*>(context);
  const HalfLinearParams& p = task.p;
  const int64_t block_bytes = Packed::bytes(task.groups);
  Scratch<uint8_t> memory(task.blocks * block_bytes + 64);
  Scratch<float> buffer(p.weight.input_stride == 1 ? kHalfRows * 2 * task.groups : 0);
  uint8_t* const strip = memory + (64 - reinterpret_cast<uintptr_t>(+memory) % 64);
  for (int64_t index; queue.take(&index);) {
    const int64_t channel = index % task.strips * task.blocks * kHalfRows;
    const int64_t begin = index / task.strips * task.rows;
    const int64_t end = least(begin + task.rows, p.num_rows);
    const int64_t blocks = least(task.blocks, ceil_div(p.num_outputs - channel, kHalfRows));
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t c = channel + b * kHalfRows;
      pack(p.weight, c, p.num_outputs - c, p.num_inputs, false, buffer,
           {strip + b * block_bytes, task.groups, true});
    }
    for (int64_t row = begin; row < end; row += kMostRows) {
      const int64_t last = least(row + kMostRows, end);
      for (int64_t b = 0; b < blocks; b += kTileBlocks) {
        const Packed weight{strip + b * block_bytes, task.groups, true};
        const int64_t c = channel + b * kHalfRows;
        if (blocks - b >= kTileBlocks) multiply_rows<kTileBlocks>(task, row, last, c, weight);
        if (blocks - b == 2) multiply_rows<2>(task, row, last, c, weight);
        if (blocks - b == 1) multiply_rows<1>(task, row, last, c, weight);
      }
    }
  }
}

}  // namespace

void half_linear(const HalfLinearParams& p) {
  const int64_t blocks = ceil_div(p.num_outputs, kHalfRows), wanted = 4 * p.num_threads;
  const int64_t width = ceil_div(blocks, kMostBlocks) >= wanted ? kMostBlocks : kTileBlocks;
  const int64_t strips = ceil_div(blocks, width);
  // Whole blocks of rows, so that each tile lies within one of the packed.
  int64_t rows = ceil_div(p.num_rows, kHalfRows) * kHalfRows;
  while (rows > kLeastRows && ceil_div(p.num_rows, rows) * strips < wanted)
    rows = ceil_div(rows / 2, kHalfRows) * kHalfRows;
  Task task{p, Packed::groups_of(p.num_inputs), rows, width, strips};
  run_workers(ceil_div(p.num_rows, kHalfRows), p.num_threads, pack_x, &task);
  run_workers(ceil_div(p.num_rows, rows) * strips, p.num_threads, multiply_blocks, &task);
}

}  // namespace vitadapter::VITADAPTER_ISA
