// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// Which of the compiled instruction sets this processor runs.
#pragma once

#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "common/dtype.h"

namespace vitadapter {

#if defined(__x86_64__)
// Asked by CPUID, since older compilers have no names for these.
struct LowProducts {
  bool of_avx512_bf16 = false, of_avx512_fp16 = false, of_tiles_bf16 = false, of_tiles_fp16 = false;
  // Faster than float32: AMD's, whose instruction multiplies twice as many numbers in as many
  // cycles. Intel's takes four times the cycles: 1.37e9 vdpbf16ps a second against 5.5e9
  // vfmadd231ps (model 207, one core).
  bool of_fast_avx512_bf16 = false;

  LowProducts() {
    unsigned a, b, c, d, more, unused;
    constexpr unsigned kHasXgetbv = 1u << 27;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & kHasXgetbv)) return;
    unsigned enabled, high;  // registers that the system keeps for us
    __asm__("xgetbv" : "=a"(enabled), "=d"(high) : "c"(0));
    constexpr unsigned kTiles = 3u << 17, kAvx512 = 7u << 5;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return;
    if (!__get_cpuid_count(7, 1, &more, &b, &c, &unused)) more = 0;
    const bool has_tiles = (enabled & kTiles) == kTiles, is_wide = (enabled & kAvx512) == kAvx512;
    of_tiles_bf16 = has_tiles && d & 1u << 22;
    of_tiles_fp16 = has_tiles && more & 1u << 21;
    of_avx512_bf16 = is_wide && more & 1u << 5;
    of_avx512_fp16 = is_wide && d & 1u << 23;
    unsigned brand[3];
    of_fast_avx512_bf16 = of_avx512_bf16 && __get_cpuid(0, &a, brand, brand + 2, brand + 1) &&
                          !std::memcmp(brand, "AuthenticAMD", 12);
  }
};
#endif

// "avx512", "avx2" or "portable": the widest that this processor runs. VITADAPTER_ISA in the
// environment lowers it (for tests), also to "avx512bf16", which has products of 16 bits by
// AVX512_BF16 alone, fast or not. Kernels whose time is not that of arithmetic stop at avx2. On
// aarch64 "neon", of which the portable kernels are there.
inline const char* cpu_isa() {
#ifdef VITADAPTER_HAS_AVX2
  static const char* const widest = [] {
    const char* forced = std::getenv("VITADAPTER_ISA");
    const bool has_bf16 = forced && std::strcmp(forced, "avx512bf16") == 0;
    const bool is_free = !forced || has_bf16 || std::strcmp(forced, "avx512") == 0;
    if (!is_free && std::strcmp(forced, "avx2") != 0) return "portable";
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") ||
        !__builtin_cpu_supports("f16c"))
      return "portable";
    if (!is_free || !__builtin_cpu_supports("avx512f")) return "avx2";
    return has_bf16 && LowProducts().of_avx512_bf16 ? "avx512bf16" : "avx512";
  }();
  return widest;
#elif defined(__aarch64__)
  return "neon";
#else
  return "portable";
#endif
}

// With AVX512_BF16, which each processor with AVX512_FP16 has: it rounds results to bfloat16.
inline bool has_avx512_fp16() {
#if defined(__x86_64__)
  const LowProducts found;
  return found.of_avx512_fp16 && found.of_avx512_bf16;
#else
  return false;
#endif
}

// Whether products of bfloat16, or of float16, take no more time than those of float32. Of x86-64
// that holds for AMX, AVX512_FP16 and a fast AVX512_BF16; of other processors torch knows.
inline bool has_low_products(DType dtype) {
#if defined(__x86_64__)
  const LowProducts found;
  if (dtype == DType::kBFloat16) return found.of_tiles_bf16 || found.of_fast_avx512_bf16;
  if (dtype == DType::kFloat16) return found.of_tiles_fp16 || found.of_avx512_fp16;
#endif
  (void)dtype;
  return true;
}

}  // namespace vitadapter

#ifdef VITADAPTER_HAS_AVX2
#define VITADAPTER_CPU_DISPATCH(function, params) \
  return cpu_isa()[0] == 'a' ? avx2::function(params) : portable::function(params)
#define VITADAPTER_CPU_DISPATCH_WIDE(function, params)                        \
  return std::strncmp(cpu_isa(), "avx512", 6) == 0 ? avx512::function(params) \
         : cpu_isa()[0] == 'a'                     ? avx2::function(params)   \
                                                   : portable::function(params)
#else
#define VITADAPTER_CPU_DISPATCH(function, params) return portable::function(params)
#define VITADAPTER_CPU_DISPATCH_WIDE VITADAPTER_CPU_DISPATCH
#endif
