// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// What one launch of a linear layer in products of 16 bits needs: pointers, sizes and strides.
#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace vitadapter {

// Rows of numbers, float32 or bfloat16: [N, K] or [C, K]. One of the strides, which count elements,
// is 1.
struct HalfRows {
  const void* data;
  DType dtype;
  int64_t row_stride, input_stride;
};

// What the kernel packs: 16 rows, of each two numbers at a time, behind them what 1 stands for in
// each row. Numbers beyond N or C are not meant, those beyond K are 0.
constexpr int64_t kHalfRows = 16, kHalfInputs = 16;  // K is rounded up to these

struct HalfLinearParams {
  HalfRows x;          // [N, K]
  HalfRows weight;     // [C, K]
  const float* gamma;  // [C], multiplies the result; or null
  const float* bias;   // [C], added before that; or null
  const void* plus;    // [N, C], dense, added to all; or null
  DType plus_dtype;
  bool has_gelu;  // GELU of x is multiplied, not x; then its input_stride is 1
  int64_t num_rows, num_inputs, num_outputs;  // N K C
  void* halves;  // memory for x as it is packed: [ceil(N / 16), ceil(K / 16) * 512 + 64] bytes
  void* out;     // [N, C], dense
  DType out_dtype;
  int num_threads;
};

// Whether this processor multiplies 16 bits twice as fast as float32, by a kernel that was
// compiled.
bool has_half_products();
void half_linear_cpu(const HalfLinearParams& params);

}  // namespace vitadapter
