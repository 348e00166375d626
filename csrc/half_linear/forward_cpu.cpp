// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// First x is packed in float16, one task sixteen rows of it. Then one task is a block of rows times
// a strip of channels, whose weights it packs.
//
// Multiply-adds a second of one core of an Intel Xeon (model 207): float32 88e9 at best, this for
// 1024 x 384 x 1536 140e9, packing and all; vfmadd231ph alone 179e9.
#include "common/half_tile.h"
#include "common/scratch.h"
#include "common/workers.h"
#include "half_linear/rows_cpu.h"

namespace vitadapter::VITADAPTER_ISA {
namespace {

constexpr int64_t kMostRows = 128, kMostBlocks = 6;  // of a piece of x, of a strip
constexpr int64_t kLeastRows = 64;                   // of a task that packs weights
constexpr int64_t kPackedRows = 2 * kLeftRows;       // of a task that packs x

struct Task {
  const HalfLinearParams& p;
  int64_t groups;
  int64_t rows, blocks;  // of one task of the product
  int64_t strips;

  Halves x(int64_t block) const {
    return Halves{static_cast<uint8_t*>(p.halves), groups, kLeftRows}.block(block);
  }
};

void pack_x(void* context, TaskQueue& queue) {
  const Task& task = *static_cast<const Task*>(context);
  const bool is_changed = task.p.has_gelu || task.p.norm.weight;
  Scratch<float> changed(is_changed ? 2 * task.groups : 0);
  Scratch<uint8_t> rows(task.groups * kLeftRows * 4);
  ColumnPacker columns(task.p.x.input_stride == 1 ? 0 : task.p.num_inputs, 1);
  for (int64_t block; queue.take(&block);)
    pack_left(task.p, block * kPackedRows, changed, rows, columns, task.x(block * 2));
}

// A row of a tile: `sums` times `scale` plus `shift`, and what is added.
template <typename Plus, typename Out>
void finish(__m512 sums, __m512 scale, __m512 shift, const Plus* plus, __mmask16 lanes, Out* out) {
  __m512 result = _mm512_fmadd_ps(sums, scale, shift);
  if (plus) result = _mm512_add_ps(result, load(plus, lanes));
  store(out, lanes, result);
}

// Rows begin ... end - 1 times some blocks of channels, packed.
template <int kBlocks>
void multiply_rows(const Task& task, int64_t begin, int64_t end, int64_t channel,
                   const Halves& weight) {
  const HalfLinearParams& p = task.p;
  for (int64_t row = begin; row < end; row += kLeftRows) {
    const Halves x = task.x(row / kLeftRows);
    const HalfTile<kBlocks> tile = multiply_halves<kBlocks>(x.data, 4, x.step(), weight);
    const int rows = static_cast<int>(least(kLeftRows, end - row));
    for (int b = 0; b < kBlocks; ++b) {
      const int64_t c = channel + b * kRightRows;
      const __mmask16 lanes = first_lanes(p.num_outputs - c);
      __m512 scales = _mm512_maskz_loadu_ps(lanes, weight.block(b).inverse());
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
            const __m512 scale = _mm512_mul_ps(scales, _mm512_set1_ps(x.inverse()[r]));
            finish(tile.sums(r, b), scale, shift, plus ? plus + at : nullptr, lanes,
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
  const int64_t block_bytes = Halves::bytes(task.groups, kRightRows);
  Scratch<uint8_t> memory(task.blocks * block_bytes);
  const bool has_rows = p.weight.input_stride == 1;
  Scratch<uint8_t> buffer(has_rows ? block_bytes : 0);
  ColumnPacker columns(has_rows ? 0 : p.num_inputs, task.blocks);
  const Halves strip{memory, task.groups, kRightRows};
  for (int64_t index; queue.take(&index);) {
    const int64_t channel = index % task.strips * task.blocks * kRightRows;
    const int64_t begin = index / task.strips * task.rows;
    const int64_t end = least(begin + task.rows, p.num_rows);
    const int64_t blocks = least(task.blocks, ceil_div(p.num_outputs - channel, kRightRows));
    pack_right(p, channel, least(blocks * kRightRows, p.num_outputs - channel), buffer, columns,
               strip);
    for (int64_t row = begin; row < end; row += kMostRows) {
      const int64_t last = least(row + kMostRows, end);
      over_blocks(blocks, [&](auto tile, int64_t b) {
        multiply_rows<tile>(task, row, last, channel + b * kRightRows, strip.block(b));
      });
    }
  }
}

}  // namespace

void half_linear(const HalfLinearParams& p) {
  const int64_t blocks = ceil_div(p.num_outputs, kRightRows), wanted = 4 * p.num_threads;
  const int64_t width = ceil_div(blocks, kMostBlocks) >= wanted ? kMostBlocks : kTileBlocks;
  const int64_t strips = ceil_div(blocks, width);
  // Whole blocks of rows, so that each tile lies within one of the packed.
  int64_t rows = ceil_div(p.num_rows, kLeftRows) * kLeftRows;
  while (rows > kLeastRows && ceil_div(p.num_rows, rows) * strips < wanted)
    rows = ceil_div(rows / 2, kLeftRows) * kLeftRows;
  Task task{p, Halves::groups_of(p.num_inputs), rows, width, strips};
  run_workers(ceil_div(p.num_rows, kPackedRows), p.num_threads, pack_x, &task);
  run_workers(ceil_div(p.num_rows, rows) * strips, p.num_threads, multiply_blocks, &task);
}

}  // namespace vitadapter::VITADAPTER_ISA
