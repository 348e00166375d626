// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// Checks what could corrupt memory and picks the instruction set.
#include "common/check.h"
#include "common/isa.h"
#include "half_linear/params.h"
#include "window_attention/params.h"

namespace vitadapter {
namespace avx512 {
void window_attention_forward(const WindowAttentionParams&);
void window_attention_backward(const WindowAttentionParams&);
}  // namespace avx512
namespace avx2 {
void window_attention_forward(const WindowAttentionParams&);
void window_attention_backward(const WindowAttentionParams&);
}  // namespace avx2
namespace portable {
void window_attention_forward(const WindowAttentionParams&);
void window_attention_backward(const WindowAttentionParams&);
}  // namespace portable
namespace avx512fp16 {
void window_attention_forward_half(const WindowAttentionParams&);
void window_attention_backward_half(const WindowAttentionParams&);
}  // namespace avx512fp16
namespace avx512bf16 {
void window_attention_forward_half(const WindowAttentionParams&);
void window_attention_backward_half(const WindowAttentionParams&);
}  // namespace avx512bf16

namespace {

void check(const WindowAttentionParams& p, std::initializer_list<const void*> results) {
  const char kOp[] = "window_attention";
  VITADAPTER_CHECK(p.hw.h > 0 && p.hw.w > 0 && p.channels > 0,
                   "window_attention: a size must be positive");
  const int64_t rows = volume(kOp, {p.batch, p.hw.h, p.hw.w, p.heads});
  check_memory(kOp, volume(kOp, {rows, 3, p.channels}), {p.qkv, p.logsumexp});
  check_memory(kOp, rows, results);
  VITADAPTER_CHECK(p.window_size >= 0, "window_attention: the window is negative");
}

struct HalfKernels {
  void (*forward)(const WindowAttentionParams&);
  void (*backward)(const WindowAttentionParams&);
};

// The kernels of 16 bits, where they are faster here than those of float32; or null.
const HalfKernels* half_kernels(DType dtype) {
  if (dtype != DType::kBFloat16) return nullptr;
#ifdef VITADAPTER_HAS_AVX512_FP16
  static constexpr HalfKernels of_float16{avx512fp16::window_attention_forward_half,
                                          avx512fp16::window_attention_backward_half};
  if (has_half_products()) return &of_float16;
#endif
#ifdef VITADAPTER_HAS_AVX512_BF16
  static constexpr HalfKernels of_bfloat16{avx512bf16::window_attention_forward_half,
                                           avx512bf16::window_attention_backward_half};
  static const bool is_fast = LowProducts().of_fast_avx512_bf16;
  const char* const isa = cpu_isa();
  if (std::strcmp(isa, "avx512bf16") == 0 || (is_fast && std::strcmp(isa, "avx512") == 0))
    return &of_bfloat16;
#endif
  return nullptr;
}

}  // namespace

void window_attention_forward_cpu(const WindowAttentionParams& p) {
  check(p, {p.out});
  if (const HalfKernels* half = half_kernels(p.dtype)) return half->forward(p);
  VITADAPTER_CPU_DISPATCH_WIDE(window_attention_forward, p);
}

void window_attention_backward_cpu(const WindowAttentionParams& p) {
  check(p, {p.grad_out, p.grad_qkv});
  if (const HalfKernels* half = half_kernels(p.dtype)) return half->backward(p);
  VITADAPTER_CPU_DISPATCH_WIDE(window_attention_backward, p);
}

}  // namespace vitadapter
