// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// Checks what could corrupt memory.
#include "common/check.h"
#include "common/isa.h"
#include "int8_linear/params.h"

namespace vitadapter {
#ifdef VITADAPTER_HAS_VNNI
namespace avx512vnni {
void int8_linear(const Int8LinearParams&);
}
#endif

bool has_int8_products() {
#ifdef VITADAPTER_HAS_VNNI
  return std::strcmp(cpu_isa(), "avx512") == 0 && __builtin_cpu_supports("avx512vnni");
#else
  return false;
#endif
}

void int8_linear_cpu(const Int8LinearParams& p) {
  const char kOp[] = "int8_linear";
  VITADAPTER_CHECK(has_int8_products(), "int8_linear: this processor has no AVX512_VNNI");
  // So that no sum of products of 8 bits leaves 32 bits.
  VITADAPTER_CHECK(p.num_inputs > 0 && p.num_inputs <= 65536,
                   "int8_linear: there must be 1 to 65536 inputs");
  volume(kOp, {p.num_outputs + kInt8Channels, p.num_inputs + kInt8Channels});
  const int64_t results = volume(kOp, {p.num_rows, p.num_outputs});
  check_memory(kOp, volume(kOp, {p.num_rows, p.num_inputs + 16}), {p.x, p.steps});
  check_memory(kOp, p.num_outputs, {p.weight, p.scales});
  check_memory(kOp, results, {p.out});
#ifdef VITADAPTER_HAS_VNNI
  if (results > 0) avx512vnni::int8_linear(p);
#endif
}

}  // namespace vitadapter
