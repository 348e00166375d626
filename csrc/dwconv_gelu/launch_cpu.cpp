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

void check(const DwconvGeluParams& p) {
  VITADAPTER_CHECK(p.batch >= 0 && p.channels >= 0, "dwconv_gelu: a size is negative");
  int64_t sum = 0;
  for (int64_t g = 0; g < p.grids; ++g) {
    VITADAPTER_CHECK(p.grid_hw[g].h > 0 && p.grid_hw[g].w > 0,
                     "dwconv_gelu: a grid size must be positive");
    sum += static_cast<int64_t>(p.grid_hw[g].h) * p.grid_hw[g].w;
  }
  VITADAPTER_CHECK(sum == p.num_tokens, "dwconv_gelu: grids do not add up to the tokens");
}

}  // namespace

void dwconv_gelu_forward_cpu(const DwconvGeluParams& p) {
  check(p);
  VITADAPTER_CPU_DISPATCH(dwconv_gelu_forward, p);
}

void dwconv_gelu_backward_cpu(const DwconvGeluParams& p) {
  check(p);
  VITADAPTER_CPU_DISPATCH(dwconv_gelu_backward, p);
}

}  // namespace vitadapter
