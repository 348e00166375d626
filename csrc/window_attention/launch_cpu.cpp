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

#ifdef VITADAPTER_HAS_AVX512_BF16
bool has_bfloat16_products() {
  static const bool has_them = std::strcmp(cpu_isa(), "avx512bf16") == 0 ||
                               (std::strcmp(cpu_isa(), "avx512") == 0 && has_fast_avx512_bf16());
  return has_them;
}
#endif

}  // namespace

void window_attention_forward_cpu(const WindowAttentionParams& p) {
  check(p, {p.out});
#ifdef VITADAPTER_HAS_AVX512_FP16
  if (p.dtype == DType::kBFloat16 && has_half_products())
    return avx512fp16::window_attention_forward_half(p);
#endif
#ifdef VITADAPTER_HAS_AVX512_BF16
  if (p.dtype == DType::kBFloat16 && has_bfloat16_products())
    return avx512bf16::window_attention_forward_half(p);
#endif
  VITADAPTER_CPU_DISPATCH_WIDE(window_attention_forward, p);
}

void window_attention_backward_cpu(const WindowAttentionParams& p) {
  check(p, {p.grad_out, p.grad_qkv});
#ifdef VITADAPTER_HAS_AVX512_FP16
  if (p.dtype == DType::kBFloat16 && has_half_products())
    return avx512fp16::window_attention_backward_half(p);
#endif
#ifdef VITADAPTER_HAS_AVX512_BF16
  if (p.dtype == DType::kBFloat16 && has_bfloat16_products())
    return avx512bf16::window_attention_backward_half(p);
#endif
  VITADAPTER_CPU_DISPATCH_WIDE(window_attention_backward, p);
}

}  // namespace vitadapter
