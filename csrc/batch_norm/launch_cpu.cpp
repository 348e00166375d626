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

void check(const BatchNormParams& p) {
  VITADAPTER_CHECK(p.batch > 0 && p.num_tokens > 0 && p.channels >= 0,
                   "batch_norm: there must be a token");
}

}  // namespace

void batch_norm_forward_cpu(const BatchNormParams& p) {
  check(p);
  VITADAPTER_CPU_DISPATCH(batch_norm_forward, p);
}

void batch_norm_backward_cpu(const BatchNormParams& p) {
  check(p);
  VITADAPTER_CPU_DISPATCH(batch_norm_backward, p);
}

}  // namespace vitadapter
