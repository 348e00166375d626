// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// Checks what could corrupt memory and picks the instruction set.
#include "common/check.h"
#include "common/isa.h"
#include "token_rows/params.h"

namespace vitadapter {
namespace avx2 {
void normalize_rows(const NormalizeRowsParams&);
void transpose_rows(const TransposeRowsParams&);
void gelu_rows(const GeluRowsParams&);
}  // namespace avx2
namespace portable {
void normalize_rows(const NormalizeRowsParams&);
void transpose_rows(const TransposeRowsParams&);
void gelu_rows(const GeluRowsParams&);
}  // namespace portable

void normalize_rows_cpu(const NormalizeRowsParams& p) {
  const char kOp[] = "normalize_rows";
  VITADAPTER_CHECK(p.channels > 0, "normalize_rows: there must be a channel");
  check_memory(kOp, volume(kOp, {p.num_rows, p.channels}),
               {p.rows, p.weight, p.bias, p.out, p.mean, p.rstd});
  if (p.grad) check_memory(kOp, p.channels, {p.grad_weight, p.grad_bias});
  VITADAPTER_CPU_DISPATCH(normalize_rows, p);
}

void transpose_rows_cpu(const TransposeRowsParams& p) {
  const char kOp[] = "transpose_rows";
  VITADAPTER_CHECK(p.channels <= INT32_MAX, "transpose_rows: rows are too long");
  VITADAPTER_CHECK(p.out_dtype == DType::kFloat32 || p.out_dtype == DType::kBFloat16,
                   "transpose_rows: the result must be float32 or bfloat16");
  check_memory(kOp, volume(kOp, {p.num_rows, p.channels}), {p.rows, p.out});
  VITADAPTER_CPU_DISPATCH(transpose_rows, p);
}

void gelu_rows_cpu(const GeluRowsParams& p) {
  const char kOp[] = "gelu_rows";
  check_memory(kOp, volume(kOp, {p.count}), {p.rows, p.out});
  VITADAPTER_CPU_DISPATCH(gelu_rows, p);
}

}  // namespace vitadapter
