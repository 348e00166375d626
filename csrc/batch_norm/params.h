// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// What one launch of the batch norm needs: pointers, sizes, strides, dtype.
#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace vitadapter {

// Strides count elements; the last dimension is dense. Parameters and statistics are of the compute
// type, all else of one dtype.
struct BatchNormParams {
  const void* tokens;  // [B, N, C]
  int64_t tokens_stride_b, tokens_stride_n;
  DType dtype;
  int64_t batch, num_tokens, channels;  // B N C

  const void* weight;  // [C]
  const void* bias;    // [C]
  double eps;
  bool has_relu;
  bool has_planes;  // out and grad_out are [B, C, N] instead of [B, N, C]

  void* mean;      // [C]: results of forward, inputs of backward
  void* variance;  // [C], of the samples, not of what they are drawn from
  void* out;       // dense; unused in backward

  // Backward only. A null gradient is not computed.
  const void* grad_out;
  int64_t grad_out_stride_b, grad_out_stride_row;
  void* grad_tokens;  // [B, N, C], dense
  void* grad_weight;  // [C]
  void* grad_bias;    // [C]

  int num_threads;
};

void batch_norm_forward_cpu(const BatchNormParams& params);
void batch_norm_backward_cpu(const BatchNormParams& params);

}  // namespace vitadapter
