// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// How the gradient of a convolution's weights is shared out.
#pragma once

#include "half_conv/params.h"

namespace vitadapter {

// A band is some rows of one image's result: what a task packs of them and of the map stays in L2.
// A strip is some channels of the result. A part is the sum over consecutive bands, a task one
// strip of it: of sizes alone, so that sums are the same for any number of threads.
struct HalfConvGradientLayout {
  static constexpr int64_t kPackedBytes = 1 << 20;  // of the map, in one band
  static constexpr int64_t kMostChannels = 64;      // of a strip
  static constexpr int64_t kMostParts = 32, kMostBytes = 16 << 20;

  int64_t out_h, out_w;
  int64_t width;  // of a row, so that two pixels side by side lie in one
  int64_t rows;   // of a band
  int64_t bands, bands_of_image;
  int64_t strips, parts;
  int64_t part_numbers;  // [C, 3, 3, K]

  explicit HalfConvGradientLayout(const HalfConvGradientParams& p)
      : out_h((int64_t{p.hw.h} - 1) / p.stride + 1),
        out_w((int64_t{p.hw.w} - 1) / p.stride + 1),
        width((out_w + 1) / 2 * 2),
        strips((p.num_outputs + kMostChannels - 1) / kMostChannels),
        part_numbers(p.num_outputs * 9 * p.num_inputs) {
    // In float16, once for each of three columns of the kernels.
    const int64_t row_bytes = p.stride * width * p.num_inputs * 3 * 2;
    const int64_t most_rows = at_least_one(kPackedBytes / row_bytes);
    bands_of_image = (out_h + most_rows - 1) / most_rows;
    rows = (out_h + bands_of_image - 1) / bands_of_image;
    bands_of_image = (out_h + rows - 1) / rows;
    bands = p.batch * bands_of_image;
    parts = at_least_one(kMostBytes / (part_numbers * 4));
    parts = parts < kMostParts ? parts : kMostParts;
    parts = parts < bands ? parts : bands;
  }

  int64_t bytes() const { return parts * part_numbers * 4; }

 private:
  static int64_t at_least_one(int64_t count) { return count > 1 ? count : 1; }
};

}  // namespace vitadapter
