// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// Which of the compiled instruction sets this processor runs.
#pragma once

#include <cstdlib>
#include <cstring>

namespace vitadapter {

// "avx2" or "portable". VITADAPTER_ISA=portable in the environment forces the latter (for tests).
inline const char* cpu_isa() {
#ifdef VITADAPTER_HAS_AVX2
  static const bool has_avx2 = [] {
    const char* forced = std::getenv("VITADAPTER_ISA");
    if (forced && std::strcmp(forced, "portable") == 0) return false;
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("f16c");
  }();
  if (has_avx2) return "avx2";
#endif
  return "portable";
}

}  // namespace vitadapter

#ifdef VITADAPTER_HAS_AVX2
#define VITADAPTER_CPU_DISPATCH(function, params) \
  return cpu_isa()[0] == 'a' ? avx2::function(params) : portable::function(params)
#else
#define VITADAPTER_CPU_DISPATCH(function, params) return portable::function(params)
#endif
