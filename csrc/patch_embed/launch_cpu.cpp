// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// Picks the instruction set.
#include "common/isa.h"
#include "patch_embed/checks.h"

namespace vitadapter {
namespace avx2 {
bool patch_embed_resize_add(const ResizeAddParams&);
}
namespace portable {
bool patch_embed_resize_add(const ResizeAddParams&);
}

namespace {

bool resize_add(const ResizeAddParams& p) { VITADAPTER_CPU_DISPATCH(patch_embed_resize_add, p); }

}  // namespace

void patch_embed_resize_add_cpu(const ResizeAddParams& p) {
  check(p);
  VITADAPTER_CHECK(resize_add(p), kNoKernel);
}

}  // namespace vitadapter
