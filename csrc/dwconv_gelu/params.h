// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// What one launch of the depthwise convolution with GELU needs: pointers, sizes, strides, dtype.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/size.h"

namespace vitadapter {

constexpr int kTaps = 9;  // (dy, dx) in rows: tap t reads row t / 3 - 1 and column t % 3 - 1

// Strides count elements; channels are dense. All tensors are of one dtype.
struct DwconvGeluParams {
  const void* tokens;  // [B, N, C]: the grids one after the other
  const void* weight;  // [C, 9]
  const void* bias;    // [C] or null
  int64_t tokens_stride_b, tokens_stride_n;
  DType dtype;

  int64_t batch, num_tokens, channels;  // B N C
  const SizeHW* grid_hw;                // [grids]; products add up to N
  int64_t grids;

  void* out;  // [B, N, C], dense; unused in backward

  // Backward only. A null gradient is not computed.
  const void* grad_out;  // [B, N, C]
  int64_t grad_out_stride_b, grad_out_stride_n;
  void* grad_tokens;  // dense
  void* grad_weight;  // [C, 9]
  void* grad_bias;    // [C]

  int num_threads;  // CPU

  // CUDA. All memory is the caller's: kernels allocate nothing, so launches can be captured.
  int device;
  void* stream;
  void* grad_sum;      // [B, N, C], dense: gradient of what goes into GELU
  void* partial_sums;  // [tiles, 10, C] in the compute type: gradients of weight, then bias
  int64_t tiles;       // of kWeightRows x kWeightColumns pixels, of all grids of all images
};

// What a block of the weight gradient's kernel sums up.
constexpr int kWeightRows = 16, kWeightColumns = 32;

void dwconv_gelu_forward_cpu(const DwconvGeluParams& params);
void dwconv_gelu_backward_cpu(const DwconvGeluParams& params);
void dwconv_gelu_forward_cuda(const DwconvGeluParams& params);
// grad_sum, and from it grad_tokens and partial_sums where they are not null.
void dwconv_gelu_backward_cuda(const DwconvGeluParams& params);

}  // namespace vitadapter
