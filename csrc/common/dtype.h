// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// Element types as they lie in memory, and the codes by which Python names them.
#pragma once

#include <cstdint>

namespace vitadapter {

enum class DType : int { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2, kFloat64 = 3 };

struct Half {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

// 16-bit values are computed in float32.
template <typename T>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};
template <typename T>
using Compute = typename ComputeOf<T>::type;

// Calls run(typed pointer) for a dtype.
template <typename Run>
inline void with_type(DType dtype, const void* base, Run&& run) {
  switch (dtype) {
    case DType::kFloat32:
      return run(static_cast<const float*>(base));
    case DType::kFloat16:
      return run(static_cast<const Half*>(base));
    case DType::kBFloat16:
      return run(static_cast<const BFloat16*>(base));
    case DType::kFloat64:
      return run(static_cast<const double*>(base));
  }
}

}  // namespace vitadapter
