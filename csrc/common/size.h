// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// The size of one grid of pixels or tokens, as Python passes it.
#pragma once

#include <cstdint>

namespace vitadapter {

struct SizeHW {
  int32_t h, w;
};

}  // namespace vitadapter
