// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// What one launch of a 3 x 3 convolution in products of 16 bits needs.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/size.h"

namespace vitadapter {

struct HalfConvParams {
  const void* x;  // [B, H, W, K], rows of pixels dense; strides count elements
  DType x_dtype;  // float32 or bfloat16
  int64_t stride_b, stride_h;
  const float* weight;                     // [C, 3, 3, K], dense
  const float* bias;                       // [C] or null
  bool has_relu;                           // ReLU of the result is returned
  int64_t batch, num_inputs, num_outputs;  // B K C; K is a multiple of 16
  SizeHW hw;                               // H W
  int64_t stride;                          // 1 or 2
  bool pads_rows;  // with a row of zeros above and below, as columns always are on both sides
  void* halves;    // memory for x and weight as they are packed
  int64_t halves_bytes;
  void* out;  // [B, H', W', C], dense
  DType out_dtype;
  int num_threads;
};

// Of the gradient of its weights, padded with zeros all around.
struct HalfConvGradientParams {
  const void* x;  // [B, H, W, K], rows of pixels dense; strides count elements
  DType x_dtype;  // float32 or bfloat16
  int64_t stride_b, stride_h;
  const void* grad;  // of the result, [B, H', W', C], likewise
  DType grad_dtype;
  int64_t grad_stride_b, grad_stride_h;
  int64_t batch, num_inputs, num_outputs;  // B K C
  SizeHW hw;                               // H W
  int64_t stride;                          // 1 or 2
  float* parts;                            // memory for sums
  int64_t parts_bytes;
  float* out;  // [C, 3, 3, K], dense
  int num_threads;
};

// Bytes of `halves` or `parts` for these sizes; throw as the launches do.
int64_t half_conv_bytes(const HalfConvParams& params);
int64_t half_conv_gradient_bytes(const HalfConvGradientParams& params);
void half_conv_cpu(const HalfConvParams& params);
void half_conv_gradient_cpu(const HalfConvGradientParams& params);

}  // namespace vitadapter
