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
      : data_(static_cast<T*>(std::calloc(count > 0 ? count : 1, sizeof(T)))) {
    if (!data_) throw std::bad_alloc();
  }
  ~Scratch() { std::free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  operator T*() { return data_; }

 private:
  T* data_;
};

}  // namespace vitadapter::VITADAPTER_ISA
