// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// Checks what could corrupt memory and picks the instruction set.
#include "common/check.h"
#include "common/isa.h"
#include "ms_deform_attn/params.h"

namespace vitadapter {
namespace avx2 {
void ms_deform_attn_forward(const MsDeformAttnParams&);
void ms_deform_attn_backward(const MsDeformAttnParams&);
}  // namespace avx2
namespace portable {
void ms_deform_attn_forward(const MsDeformAttnParams&);
void ms_deform_attn_backward(const MsDeformAttnParams&);
}  // namespace portable

namespace {

int64_t pixels(const SizeHW* sizes, int64_t count) {
  int64_t sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    // Coordinates are floats: sizes up to 2^24 are exact in them.
    VITADAPTER_CHECK(
        sizes[i].h > 0 && sizes[i].w > 0 && sizes[i].h <= 1 << 24 && sizes[i].w <= 1 << 24,
        "ms_deform_attn: a map size must be in 1 ... 2^24");
    sum += static_cast<int64_t>(sizes[i].h) * sizes[i].w;
  }
  return sum;
}

void check(const MsDeformAttnParams& p, const void* result) {
  const char kOp[] = "ms_deform_attn";
  VITADAPTER_CHECK(p.levels >= 1, "ms_deform_attn: there must be a level");
  const int64_t weights = volume(kOp, {p.batch, p.queries, p.heads, p.levels, p.num_points, 2}) / 2;
  check_memory(kOp, weights, {p.points, p.weights});
  check_memory(kOp, volume(kOp, {p.batch, p.tokens, p.heads, p.channels}), {p.value});
  check_memory(kOp, volume(kOp, {p.batch, p.queries, p.heads, p.channels}), {result});
  VITADAPTER_CHECK(pixels(p.level_hw, p.levels) == p.tokens,
                   "ms_deform_attn: level sizes do not add up to the value tokens");
  VITADAPTER_CHECK(p.tokens < int64_t(1) << 31, "ms_deform_attn: at most 2^31 - 1 value tokens");
  VITADAPTER_CHECK(!p.query_hw || pixels(p.query_hw, p.query_grids) == p.queries,
                   "ms_deform_attn: query grids do not add up to the queries");
}

}  // namespace

void ms_deform_attn_forward_cpu(const MsDeformAttnParams& p) {
  check(p, p.out);
  VITADAPTER_CPU_DISPATCH(ms_deform_attn_forward, p);
}

void ms_deform_attn_backward_cpu(const MsDeformAttnParams& p) {
  check(p, p.grad_out);
  VITADAPTER_CPU_DISPATCH(ms_deform_attn_backward, p);
}

}  // namespace vitadapter
