// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// Where a convolution packs its map and its weights.
#pragma once

#include "half_conv/params.h"

namespace vitadapter {

// Rows of the map in float16, with columns of zeros around, each with its inverse factor behind it;
// then blocks of 16 channels of the weights.
struct HalfConvLayout {
  int64_t out_h, out_w;
  int64_t rows;         // of one image, those of zeros too
  int64_t pixel_bytes;  // of one pixel of a row
  int64_t row_bytes;    // of one row; its factor lies in the last 64
  int64_t blocks, block_bytes;

  explicit HalfConvLayout(const HalfConvParams& p)
      : out_h((int64_t{p.hw.h} + (p.pads_rows ? 2 : 0) - 3) / p.stride + 1),
        out_w((int64_t{p.hw.w} - 1) / p.stride + 1),
        rows(int64_t{p.hw.h} + (p.pads_rows ? 2 : 0)),
        pixel_bytes(p.num_inputs * 2),
        row_bytes((((out_w + kLeftRows - 1) / kLeftRows * kLeftRows - 1) * p.stride + 3) *
                      pixel_bytes +
                  64),
        blocks((p.num_outputs + kRightRows - 1) / kRightRows),
        block_bytes(9 * pixel_bytes * kRightRows + 64) {}

  int64_t weight_offset(const HalfConvParams& p) const {
    return (p.batch * rows * row_bytes + 63) / 64 * 64;
  }
  int64_t bytes(const HalfConvParams& p) const { return weight_offset(p) + blocks * block_bytes; }
};

}  // namespace vitadapter
