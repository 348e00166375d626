// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// What one launch of a linear layer in products of 16 bits needs: pointers, sizes and strides.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/size.h"

namespace vitadapter {

// Rows of numbers, float32 or bfloat16: [N, K] or [C, K]. One of the strides, which count elements,
// is 1.
struct HalfRows {
  const void* data;
  DType dtype;
  int64_t row_stride, input_stride;
};

// A normalization of the rows before they are multiplied.
struct HalfNorm {
  const float* weight;  // [K]; null for none
  const float* bias;    // [K]
  double eps;
  float* mean;  // [N]
  float* rstd;  // [N], 1 / sqrt(variance + eps)
};

struct HalfLinearParams {
  HalfRows x;          // [N, K]
  HalfRows weight;     // [C, K]
  const float* gamma;  // [C], multiplies the result; or null
  const float* bias;   // [C], added before that; or null
  const void* plus;    // [N, C], dense, added to all; or null
  DType plus_dtype;
  bool has_gelu;  // GELU of x is multiplied, not x
  HalfNorm norm;  // x is normalized; with either, its input_stride is 1, and not with both
  float* sums;    // [N], what the rows of x add up to; or null
  int64_t num_rows, num_inputs, num_outputs;  // N K C
  void* halves;  // memory for x as it is packed: [ceil(N / 8), ceil(K / 16) * 256 + 64] bytes
  void* out;     // [N, C], dense
  DType out_dtype;
  int num_threads;
};

// Whether this processor multiplies 16 bits twice as fast as float32, by a kernel that was
// compiled.
bool has_half_products();
void half_linear_cpu(const HalfLinearParams& params);

}  // namespace vitadapter
