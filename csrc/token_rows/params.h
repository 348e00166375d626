// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// What the linear layers do to rows of tokens around a matrix product. Not operators of torch: the
// layers call them inside their own gradients, in float32 on the CPU, and torch's elsewhere.
#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace vitadapter {

struct NormalizeRowsParams {
  const float* rows;           // [N, C], dense
  const float* weight;         // [C]
  const float* bias;           // [C]
  int64_t num_rows, channels;  // N C
  double eps;
  float* out;         // [N, C]
  float* mean;        // [N]
  float* rstd;        // [N], 1 / sqrt(variance + eps)
  float* grad;        // [N, C], gradient of `out`, which becomes that of `rows` + plus; or null
  const float* plus;  // [N, C] or null
  float *grad_weight, *grad_bias;  // [C], with `grad`
  int num_threads;
};

struct TransposeRowsParams {
  const float* rows;  // [N, C], rows `stride` elements apart
  int64_t stride;
  int64_t num_rows, channels;  // N C
  void* out;                   // [C, N], dense
  DType out_dtype;             // float32 or bfloat16
  int num_threads;
};

struct GeluRowsParams {
  const float* rows;
  int64_t count;
  float* out;   // GELU of each
  float* grad;  // multiplied by the slope at each; or null
  int num_threads;
};

void normalize_rows_cpu(const NormalizeRowsParams& params);
void transpose_rows_cpu(const TransposeRowsParams& params);
void gelu_rows_cpu(const GeluRowsParams& params);

}  // namespace vitadapter
