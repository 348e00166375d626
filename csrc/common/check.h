// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// Checks of what could corrupt memory; everything else was checked in Python.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>

#define VITADAPTER_CHECK(condition, message)                                                     \
  do {                                                                                           \
    if (!(condition)) throw std::invalid_argument(std::string("vitadapter_fast: ") + (message)); \
  } while (false)

namespace vitadapter {

// Returns how many elements a tensor of these sizes has. Addresses are computed in 64 bits: with no
// more than this many, and none of the sizes larger, they cannot overflow.
inline int64_t volume(const char* op, std::initializer_list<int64_t> sizes) {
  constexpr int64_t kMost = int64_t{1} << 48;
  int64_t product = 1;
  for (int64_t size : sizes) {
    VITADAPTER_CHECK(size >= 0, std::string(op) + ": a size is negative");
    VITADAPTER_CHECK(size <= kMost && (size == 0 || product <= kMost / size),
                     std::string(op) + ": a tensor is larger than any memory");
    product *= size;
  }
  return product;
}

// Throws where tensors that have elements have no memory.
inline void check_memory(const char* op, int64_t elements,
                         std::initializer_list<const void*> tensors) {
  for (const void* tensor : tensors)
    VITADAPTER_CHECK(tensor || elements == 0,
                     std::string(op) + ": the address of a tensor is missing");
}

}  // namespace vitadapter
