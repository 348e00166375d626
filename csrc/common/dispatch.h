// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// A run-time integer to a template argument, from one list of the values that have a kernel.
#pragma once

#include <type_traits>
#include <utility>

namespace vitadapter {

// Calls run(std::integral_constant<int, v>) for the v in kValues that equals value. Returns whether
// there is one.
template <int... kValues, typename Run>
bool dispatch(int64_t value, Run&& run) {
  return ((value == kValues ? (run(std::integral_constant<int, kValues>{}), true) : false) || ...);
}

// Calls run(std::true_type) or run(std::false_type).
template <typename Run>
void dispatch_bool(bool value, Run&& run) {
  value ? run(std::true_type{}) : run(std::false_type{});
}

// Channels per head, and levels (of 4 points each), that have a specialized CUDA kernel. A build
// may name fewer: sanitizers make each kernel take seconds to compile.
#ifndef VITADAPTER_HEAD_CHANNELS
#define VITADAPTER_HEAD_CHANNELS 16, 32, 64, 128
#endif
#ifndef VITADAPTER_LEVELS
#define VITADAPTER_LEVELS 1, 2, 3, 4, 5
#endif
constexpr int kSpecializedPoints = 4;

// Of so many points of float32 the state does not fit into a lane's registers: the kernels that are
// left out would spill, on one of sm_80, sm_90 and sm_120 at least.
constexpr bool has_specialized_backward(int element_bytes, int channels, int levels) {
  return element_bytes < 4 || levels == 1 || (channels > 16 && levels < 5);
}

}  // namespace vitadapter
