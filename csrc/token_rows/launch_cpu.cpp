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
  VITADAPTER_CHECK(p.num_rows >= 0 && p.channels > 0, "normalize_rows: there must be a channel");
  VITADAPTER_CPU_DISPATCH(normalize_rows, p);
}

void transpose_rows_cpu(const TransposeRowsParams& p) {
  VITADAPTER_CHECK(p.num_rows >= 0 && p.channels >= 0 && p.channels <= INT32_MAX,
                   "transpose_rows: a size is out of range");
  VITADAPTER_CPU_DISPATCH(transpose_rows, p);
}

void gelu_rows_cpu(const GeluRowsParams& p) {
  VITADAPTER_CHECK(p.count >= 0, "gelu_rows: the count must not be negative");
  VITADAPTER_CPU_DISPATCH(gelu_rows, p);
}

}  // namespace vitadapter
