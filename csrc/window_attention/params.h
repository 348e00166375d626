// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// What one launch of the attention within windows needs: pointers, sizes, strides, dtype.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/size.h"

namespace vitadapter {

// Strides count elements; everything behind the token is dense. All tensors but logsumexp are of
// one dtype.
struct WindowAttentionParams {
  const void* qkv;  // [B, h * w, 3, M, D]
  int64_t qkv_stride_b, qkv_stride_n;
  DType dtype;

  int64_t batch, heads, channels;  // B M D
  SizeHW hw;
  int64_t window_size;

  void* out;        // [B, h * w, M, D], dense; unused in backward
  void* logsumexp;  // [B, h * w, M] in the compute type, dense; read in backward

  // Backward only.
  const void* grad_out;  // [B, h * w, M, D]
  int64_t grad_out_stride_b, grad_out_stride_n;
  void* grad_qkv;  // dense

  int num_threads;
};

void window_attention_forward_cpu(const WindowAttentionParams& params);
void window_attention_backward_cpu(const WindowAttentionParams& params);

}  // namespace vitadapter
