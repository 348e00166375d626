// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// First each row of the map is packed in float16, with a factor of its own, and each 16 channels of
// the weights. Then one task is some rows of the result. A tile is eight of its pixels times 32 or
// 48 channels; it reads the pixels of one row of the map after the other where they lie, so nothing
// is laid out nine times.
#include <cstring>

#include "common/half_tile.h"
#include "common/scratch.h"
#include "common/workers.h"
#include "half_conv/layout.h"

namespace vitadapter::VITADAPTER_ISA {
namespace {

constexpr int64_t kMostRows = 8;  // of one task

// Sums are so much smaller than meant, that the factor of a row does not take them beyond float32:
// for numbers up to 2^76, of which larger ones give infinity or NaN.
constexpr float kSmaller = 0x1p-56f;

struct Task {
  const HalfConvParams& p;
  HalfConvLayout layout;
  int64_t rows;    // of one task
  int64_t chunks;  // equal parts of the inputs, each summed in float16

  uint8_t* row(int64_t index) const {
    return static_cast<uint8_t*>(p.halves) + index * layout.row_bytes;
  }
  float* inverse(int64_t index) const {
    return reinterpret_cast<float*>(row(index) + layout.row_bytes - 64);
  }
  Halves weight() const {
    return {static_cast<uint8_t*>(p.halves) + layout.weight_offset(p), 9 * p.num_inputs / 2,
            kRightRows};
  }
};

void pack_row(const Task& task, int64_t index) {
  const HalfConvParams& p = task.p;
  uint8_t* const out = task.row(index);
  const int64_t y = index % task.layout.rows - (p.pads_rows ? 1 : 0);
  if (y < 0 || y >= p.hw.h) {
    std::memset(out, 0, task.layout.row_bytes);
    return;
  }
  const int64_t from = index / task.layout.rows * p.stride_b + y * p.stride_h;
  const int64_t numbers = p.hw.w * p.num_inputs;
  with_numbers(p.x_dtype, p.x, [&](auto* x) {
    *task.inverse(index) =
        round_row(x + from, numbers, kLeftExponent, out + task.layout.pixel_bytes);
  });
  uint8_t* const behind = out + task.layout.pixel_bytes + numbers * 2;
  std::memset(out, 0, task.layout.pixel_bytes);
  std::memset(behind, 0, reinterpret_cast<uint8_t*>(task.inverse(index)) - behind);
}

void pack_weights(const Task& task, int64_t block, uint8_t* rows) {
  const HalfConvParams& p = task.p;
  const Halves out = task.weight().block(block);
  const int64_t first = block * kRightRows, inputs = 9 * p.num_inputs;
  const int64_t count = least(kRightRows, p.num_outputs - first);
  for (int64_t i = 0; i < count; ++i)
    out.inverse()[i] =
        round_row(p.weight + (first + i) * inputs, inputs, kRightExponent, rows + i * inputs * 2);
  interleave(rows, out);
}

void pack(void* context, TaskQueue& queue) {
  const Task& task = *static_cast<const Task*>(context);
  Scratch<uint8_t> rows(task.layout.block_bytes);
  for (int64_t index; queue.take(&index);) {
    if (index < task.layout.blocks)
      pack_weights(task, index, rows);
    else
      pack_row(task, index - task.layout.blocks);
  }
}

// Pixels x ... x + 7 of row y of an image's result.
template <int kBlocks>
HalfTile<kBlocks> convolve(const Task& task, int64_t image, int64_t y, int64_t x,
                           const Halves& weight) {
  const HalfConvParams& p = task.p;
  const int64_t pixel = task.layout.pixel_bytes, groups = p.num_inputs / 2 / task.chunks;
  const int64_t next_block = Halves::bytes(weight.groups, kRightRows);
  HalfTile<kBlocks> tile;
  const uint8_t* right = weight.data;
  for (int64_t dy = 0; dy < 3; ++dy) {
    const int64_t index = image * task.layout.rows + y * p.stride + dy;
    const uint8_t* left = task.row(index) + x * p.stride * pixel;
    for (int64_t part = 0; part < 3 * task.chunks; ++part) {
      tile.add(left, p.stride * pixel, 4, right, next_block, groups,
               *task.inverse(index) * kSmaller);
      left += groups * 4;
      right += groups * kRightRows * 4;
    }
  }
  return tile;
}

template <int kBlocks>
void convolve_row(const Task& task, int64_t image, int64_t y, int64_t block) {
  const HalfConvParams& p = task.p;
  const int64_t width = task.layout.out_w;
  const Halves weight = task.weight().block(block);
  const int64_t first = (image * task.layout.out_h + y) * width;
  for (int64_t x = 0; x < width; x += kLeftRows) {
    const HalfTile<kBlocks> tile = convolve<kBlocks>(task, image, y, x, weight);
    const int pixels = static_cast<int>(least(kLeftRows, width - x));
    for (int b = 0; b < kBlocks; ++b) {
      const int64_t c = (block + b) * kRightRows;
      const __mmask16 lanes = first_lanes(p.num_outputs - c);
      const __m512 scale = _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, weight.block(b).inverse()),
                                         _mm512_set1_ps(1 / kSmaller));
      const __m512 bias = p.bias ? _mm512_maskz_loadu_ps(lanes, p.bias + c) : _mm512_setzero_ps();
      with_numbers(p.out_dtype, p.out, [&](auto* typed) {
        auto* const out =
            const_cast<std::remove_const_t<std::remove_pointer_t<decltype(typed)>>*>(typed) +
            (first + x) * p.num_outputs + c;
        for (int r = 0; r < pixels; ++r) {
          __m512 sum = _mm512_fmadd_ps(tile.sums(r, b), scale, bias);
          // Of two numbers of which one is NaN this is the second.
          if (p.has_relu) sum = _mm512_max_ps(_mm512_setzero_ps(), sum);
          store(out + r * p.num_outputs, lanes, sum);
        }
      });
    }
  }
}

void convolve_rows(void* context, TaskQueue& queue) {
  const Task& task = *static_cast<const Task*>(context);
  const int64_t pieces = ceil_div(task.layout.out_h, task.rows);
  for (int64_t index; queue.take(&index);) {
    const int64_t image = index / pieces, first = index % pieces * task.rows;
    const int64_t end = least(first + task.rows, task.layout.out_h);
    over_blocks(task.layout.blocks, [&](auto blocks, int64_t block) {
      for (int64_t y = first; y < end; ++y) convolve_row<blocks>(task, image, y, block);
    });
  }
}

}  // namespace

void half_conv(const HalfConvParams& p) {
  const HalfConvLayout layout(p);
  int64_t rows = kMostRows;
  while (rows > 1 && p.batch * ceil_div(layout.out_h, rows) < 4 * p.num_threads) rows /= 2;
  // The chunks that K / 2 groups divide into: K is a multiple of 16.
  int64_t chunks = ceil_div(p.num_inputs / 2, kSteps);
  while (p.num_inputs / 2 % chunks != 0) ++chunks;
  Task task{p, layout, rows, chunks};
  run_workers(layout.blocks + p.batch * layout.rows, p.num_threads, pack, &task);
  run_workers(p.batch * ceil_div(layout.out_h, rows), p.num_threads, convolve_rows, &task);
}

}  // namespace vitadapter::VITADAPTER_ISA
