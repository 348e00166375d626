// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// Checks of what could corrupt memory, for the CPU and CUDA launchers.
#pragma once

#include "common/check.h"
#include "patch_embed/params.h"

namespace vitadapter {

constexpr char kNoKernel[] = "patch_embed: no kernel for this combination of dtypes";

inline void check(const ResizeAddParams& p) {
  const char kOp[] = "patch_embed";
  for (const Bicubic& axis : {p.y, p.x}) {
    VITADAPTER_CHECK(
        axis.inputs > 0 && axis.outputs > 0 && axis.num > 0 && axis.den > 0 && axis.unit > 0,
        "patch_embed: a map size must be positive");
    const int64_t most = axis.inputs > axis.outputs ? axis.inputs : axis.outputs;
    VITADAPTER_CHECK((2 * most + 5) * (axis.num > axis.den ? axis.num : axis.den) < int64_t(1)
                                                                                        << 31,
                     "patch_embed: a map exceeds 32-bit coordinates");
    VITADAPTER_CHECK(axis.unit == axis.num || axis.unit == axis.den,
                     "patch_embed: the unit is of neither side");
    VITADAPTER_CHECK(axis.input_radius == (2 * axis.unit + axis.den - 1) / axis.den &&
                         axis.output_radius == (2 * axis.unit + axis.num - 1) / axis.num,
                     "patch_embed: a radius does not fit the sizes");
  }
  const int64_t table = volume(kOp, {p.y.inputs, p.x.inputs, p.channels});
  const int64_t grid = volume(kOp, {p.y.outputs, p.x.outputs, p.channels});
  const int64_t images = volume(kOp, {p.batch, p.is_transposed ? table : grid});
  check_memory(kOp, p.is_transposed ? grid : table, {p.source});
  check_memory(kOp, images, {p.out});
}

}  // namespace vitadapter
