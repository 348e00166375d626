// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// Checks what could corrupt memory.
#include "common/check.h"
#include "common/isa.h"
#include "half_linear/params.h"

namespace vitadapter {
#ifdef VITADAPTER_HAS_AVX512_FP16
namespace avx512fp16 {
void half_linear(const HalfLinearParams&);
}
#endif

bool has_half_products() {
#ifdef VITADAPTER_HAS_AVX512_FP16
  static const bool has_them = has_avx512_fp16();  // to ask takes microseconds, more in a guest
  return has_them && std::strcmp(cpu_isa(), "avx512") == 0;
#else
  return false;
#endif
}

void half_linear_cpu(const HalfLinearParams& p) {
  const char kOp[] = "half_linear";
  VITADAPTER_CHECK(has_half_products(), "half_linear: this processor has no AVX512_FP16");
  VITADAPTER_CHECK(p.num_inputs > 0, "half_linear: there must be inputs");
  volume(kOp, {p.num_outputs + kRightRows, p.num_inputs + kHalfInputs, 2});
  volume(kOp, {p.num_rows + kLeftRows, p.num_inputs + kHalfInputs + 2, 2});
  const int64_t results = volume(kOp, {p.num_rows, p.num_outputs});
  const HalfRows* const factors[] = {&p.x, &p.weight};
  for (int i = 0; i < 2; ++i) {
    const HalfRows& rows = *factors[i];
    VITADAPTER_CHECK(rows.dtype == DType::kFloat32 || rows.dtype == DType::kBFloat16,
                     "half_linear: numbers must be float32 or bfloat16");
    VITADAPTER_CHECK(rows.row_stride >= 0 && rows.input_stride >= 0 &&
                         (rows.row_stride == 1 || rows.input_stride == 1),
                     "half_linear: one of the strides must be 1, none negative");
    volume(kOp, {i == 0 ? p.num_rows : p.num_outputs, rows.row_stride});
    volume(kOp, {p.num_inputs, rows.input_stride});
  }
  for (DType dtype : {p.plus_dtype, p.out_dtype})
    VITADAPTER_CHECK(dtype == DType::kFloat32 || dtype == DType::kBFloat16,
                     "half_linear: results must be float32 or bfloat16");
  const bool has_norm = p.norm.weight != nullptr;
  VITADAPTER_CHECK(!(p.has_gelu || has_norm) || p.x.input_stride == 1,
                   "half_linear: GELU and the norm want dense rows");
  VITADAPTER_CHECK(!(p.has_gelu && has_norm), "half_linear: either GELU or the norm");
  if (has_norm) check_memory(kOp, p.num_rows, {p.norm.bias, p.norm.mean, p.norm.rstd});
  check_memory(kOp, results, {p.x.data, p.weight.data, p.halves, p.out});
#ifdef VITADAPTER_HAS_AVX512_FP16
  if (results > 0) avx512fp16::half_linear(p);
#endif
}

}  // namespace vitadapter
