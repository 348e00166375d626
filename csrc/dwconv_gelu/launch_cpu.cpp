// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// Checks what could corrupt memory and picks the instruction set.
#include "common/check.h"
#include "common/isa.h"
#include "dwconv_gelu/params.h"

namespace vitadapter {
namespace avx2 {
void dwconv_gelu_forward(const DwconvGeluParams&);
void dwconv_gelu_backward(const DwconvGeluParams&);
}  // namespace avx2
namespace portable {
void dwconv_gelu_forward(const DwconvGeluParams&);
void dwconv_gelu_backward(const DwconvGeluParams&);
}  // namespace portable

namespace {

void check(const DwconvGeluParams& p, const void* result) {
  const char kOp[] = "dwconv_gelu";
  check_memory(kOp, volume(kOp, {p.batch, p.num_tokens, p.channels}), {p.tokens, result});
  check_memory(kOp, p.channels, {p.weight});
  int64_t sum = 0;
  for (int64_t g = 0; g < p.grids; ++g) {
    VITADAPTER_CHECK(p.grid_hw[g].h > 0 && p.grid_hw[g].w > 0,
                     "dwconv_gelu: a grid size must be positive");
    sum += static_cast<int64_t>(p.grid_hw[g].h) * p.grid_hw[g].w;
    // In every turn: the sum of many could overflow.
    VITADAPTER_CHECK(sum <= p.num_tokens, "dwconv_gelu: grids do not add up to the tokens");
  }
  VITADAPTER_CHECK(sum == p.num_tokens, "dwconv_gelu: grids do not add up to the tokens");
}

}  // namespace

void dwconv_gelu_forward_cpu(const DwconvGeluParams& p) {
  check(p, p.out);
  VITADAPTER_CPU_DISPATCH(dwconv_gelu_forward, p);
}

void dwconv_gelu_backward_cpu(const DwconvGeluParams& p) {
  check(p, p.grad_out);
  VITADAPTER_CPU_DISPATCH(dwconv_gelu_backward, p);
}

}  // namespace vitadapter
