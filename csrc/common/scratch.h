// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// Memory of one worker, for kernel files that must not instantiate std containers: those would be
// compiled for one instruction set and linked into the code for another.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

#include "common/dtype.h"

namespace vitadapter::VITADAPTER_ISA {

template <typename T>
class Scratch {
 public:
  // calloc: fresh pages come zeroed anyway, and padding lanes may compute on what is here.
  explicit Scratch(int64_t count)
      : all_(std::calloc((count > 0 ? count : 0) * sizeof(T) + kCacheLine, 1)) {
    if (!all_) throw std::bad_alloc();
    const uintptr_t first = reinterpret_cast<uintptr_t>(all_);
    data_ = reinterpret_cast<T*>((first + kCacheLine) / kCacheLine * kCacheLine);
  }
  ~Scratch() { std::free(all_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  operator T*() { return data_; }

 private:
  // Where memory begins: a vector that lies in two lines takes twice as long.
  static constexpr uintptr_t kCacheLine = 64;

  void* all_;
  T* data_;
};

}  // namespace vitadapter::VITADAPTER_ISA
