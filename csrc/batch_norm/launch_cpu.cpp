// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// Checks what could corrupt memory and picks the instruction set.
#include "batch_norm/params.h"
#include "common/check.h"
#include "common/isa.h"

namespace vitadapter {
namespace avx2 {
void batch_norm_forward(const BatchNormParams&);
void batch_norm_backward(const BatchNormParams&);
}  // namespace avx2
namespace portable {
void batch_norm_forward(const BatchNormParams&);
void batch_norm_backward(const BatchNormParams&);
}  // namespace portable

namespace {

void check(const BatchNormParams& p, const void* result) {
  const char kOp[] = "batch_norm";
  VITADAPTER_CHECK(p.batch > 0 && p.num_tokens > 0, "batch_norm: there must be a token");
  check_memory(kOp, volume(kOp, {p.batch, p.num_tokens, p.channels}), {p.tokens, result});
  check_memory(kOp, p.channels, {p.weight, p.bias, p.mean, p.variance});
}

}  // namespace

void batch_norm_forward_cpu(const BatchNormParams& p) {
  check(p, p.out);
  VITADAPTER_CPU_DISPATCH(batch_norm_forward, p);
}

void batch_norm_backward_cpu(const BatchNormParams& p) {
  check(p, p.grad_out);
  VITADAPTER_CPU_DISPATCH(batch_norm_backward, p);
}

}  // namespace vitadapter
