// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// Checks what could corrupt memory and picks the instruction set.
#include "common/check.h"
#include "common/isa.h"
#include "rope/params.h"

namespace vitadapter {
namespace avx2 {
void rope(const RopeParams&);
}
namespace portable {
void rope(const RopeParams&);
}

void check(const RopeParams& p) {
  const char kOp[] = "rope";
  VITADAPTER_CHECK(p.hw.h > 0 && p.hw.w > 0, "rope: a size must be positive");
  VITADAPTER_CHECK(p.channels > 0 && p.channels % 4 == 0, "rope: channels must divide by 4");
  VITADAPTER_CHECK(volume(kOp, {p.hw.h, p.hw.w}) <= p.num_tokens,
                   "rope: the grid has more tokens than there are");
  check_memory(kOp, volume(kOp, {p.batch, p.num_tokens, 3, p.heads, p.channels}), {p.qkv, p.out});
  check_memory(kOp, 1, {p.tables});
}

void rope_cpu(const RopeParams& p) {
  check(p);
  VITADAPTER_CPU_DISPATCH(rope, p);
}

}  // namespace vitadapter
