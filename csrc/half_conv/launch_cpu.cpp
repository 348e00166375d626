// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// Checks what could corrupt memory.
#include "common/check.h"
#include "half_conv/gradient_layout.h"
#include "half_conv/layout.h"
#include "half_linear/params.h"

namespace vitadapter {
#ifdef VITADAPTER_HAS_AVX512_FP16
namespace avx512fp16 {
void half_conv(const HalfConvParams&);
void half_conv_gradient(const HalfConvGradientParams&);
}  // namespace avx512fp16
#endif

int64_t half_conv_bytes(const HalfConvParams& p) {
  const char kOp[] = "half_conv";
  VITADAPTER_CHECK(has_half_products(), "half_conv: this processor has no AVX512_FP16");
  VITADAPTER_CHECK(p.hw.w > 0 && p.hw.h >= (p.pads_rows ? 1 : 3),
                   "half_conv: the map is too small");
  VITADAPTER_CHECK(p.num_inputs > 0 && p.num_inputs % kHalfInputs == 0,
                   "half_conv: channels of the map must divide by 16");
  VITADAPTER_CHECK(p.stride == 1 || p.stride == 2, "half_conv: the stride must be 1 or 2");
  // With room for what sizes are rounded up to; of one image at least, or none would hide the rest.
  const int64_t images = p.batch == 0 ? 1 : p.batch;
  volume(kOp, {images, int64_t{p.hw.h} + 2, int64_t{p.hw.w} + 64, p.num_inputs, 4});
  volume(kOp, {images, int64_t{p.hw.h} + 2, p.hw.w, p.num_outputs, 4});
  volume(kOp, {p.num_outputs + kRightRows, p.num_inputs, 64});
  return HalfConvLayout(p).bytes(p);
}

void half_conv_cpu(const HalfConvParams& p) {
  const char kOp[] = "half_conv";
  const int64_t bytes = half_conv_bytes(p);
  VITADAPTER_CHECK(p.halves_bytes >= bytes, "half_conv: there is too little memory for halves");
  VITADAPTER_CHECK(p.stride_b >= 0 && p.stride_h >= 0, "half_conv: a stride is negative");
  for (DType dtype : {p.x_dtype, p.out_dtype})
    VITADAPTER_CHECK(dtype == DType::kFloat32 || dtype == DType::kBFloat16,
                     "half_conv: maps must be float32 or bfloat16");
  volume(kOp, {p.batch, p.stride_b});
  volume(kOp, {p.hw.h, p.stride_h});
  const int64_t results = volume(kOp, {p.batch, p.num_outputs});
  check_memory(kOp, results, {p.x, p.weight, p.halves, p.out});
#ifdef VITADAPTER_HAS_AVX512_FP16
  if (results > 0) avx512fp16::half_conv(p);
#endif
}

int64_t half_conv_gradient_bytes(const HalfConvGradientParams& p) {
  const char kOp[] = "half_conv_gradient";
  VITADAPTER_CHECK(has_half_products(), "half_conv_gradient: this processor has no AVX512_FP16");
  VITADAPTER_CHECK(p.hw.h > 0 && p.hw.w > 0, "half_conv_gradient: the map is empty");
  VITADAPTER_CHECK(p.num_inputs > 0 && p.num_outputs > 0,
                   "half_conv_gradient: there must be channels");
  VITADAPTER_CHECK(p.stride == 1 || p.stride == 2, "half_conv_gradient: the stride must be 1 or 2");
  const int64_t images = p.batch == 0 ? 1 : p.batch;  // as above
  volume(kOp, {images, int64_t{p.hw.h} + 2, int64_t{p.hw.w} + 2, p.num_inputs + 16, 12});
  volume(kOp, {images, p.hw.h, int64_t{p.hw.w} + 2, p.num_outputs + 16, 4});
  volume(kOp, {p.num_outputs, p.num_inputs, 9 * 4 * HalfConvGradientLayout::kMostParts});
  return HalfConvGradientLayout(p).bytes();
}

void half_conv_gradient_cpu(const HalfConvGradientParams& p) {
  const char kOp[] = "half_conv_gradient";
  const int64_t bytes = half_conv_gradient_bytes(p);
  VITADAPTER_CHECK(p.parts_bytes >= bytes,
                   "half_conv_gradient: there is too little memory for sums");
  for (int64_t stride : {p.stride_b, p.stride_h, p.grad_stride_b, p.grad_stride_h})
    VITADAPTER_CHECK(stride >= 0, "half_conv_gradient: a stride is negative");
  for (DType dtype : {p.x_dtype, p.grad_dtype})
    VITADAPTER_CHECK(dtype == DType::kFloat32 || dtype == DType::kBFloat16,
                     "half_conv_gradient: maps must be float32 or bfloat16");
  for (int64_t stride : {p.stride_b, p.grad_stride_b}) volume(kOp, {p.batch, stride});
  for (int64_t stride : {p.stride_h, p.grad_stride_h}) volume(kOp, {p.hw.h, stride});
  check_memory(kOp, bytes, {p.x, p.grad, p.parts});
  check_memory(kOp, p.num_outputs, {p.out});
#ifdef VITADAPTER_HAS_AVX512_FP16
  avx512fp16::half_conv_gradient(p);
#endif
}

}  // namespace vitadapter
