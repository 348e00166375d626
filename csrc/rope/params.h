// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// What one launch of the rotary position embedding needs: pointers, sizes, strides, dtype.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/size.h"

namespace vitadapter {

// Strides count elements; everything behind the token is dense.
struct RopeParams {
  const void* qkv;  // [B, N, 3, M, D]
  int64_t qkv_stride_b, qkv_stride_n;
  DType dtype;

  int64_t batch, num_tokens, heads, channels;  // B N M D
  SizeHW hw;                                   // of the first h * w tokens; others are not rotated

  const void* tables;  // cosines and sines, [h + w, 2, D / 4], dense, in the compute type
  bool is_inverse;     // rotates back

  void* out;  // like qkv; or qkv itself, whose other elements are then left alone
  int64_t out_stride_b, out_stride_n;

  int num_threads;

  int device;
  void* stream;
};

void rope_cpu(const RopeParams& params);
void rope_cuda(const RopeParams& params);

// Throws where a launch could corrupt memory.
void check(const RopeParams& params);

}  // namespace vitadapter
