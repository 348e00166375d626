// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// The size of one grid of pixels or tokens, as Python passes it.
#pragma once

#include <cstdint>

namespace vitadapter {

struct SizeHW {
  int32_t h, w;
};

// Where rows are packed as float16 (halves.h), so many of the left or right matrix of a product lie
// together, and their length is rounded up.
constexpr int64_t kLeftRows = 8, kRightRows = 16, kHalfInputs = 16;

}  // namespace vitadapter
