// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// What all bindings share: addresses, codes and counts from Python, and Python's lock.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>

#include "common/check.h"
#include "common/dtype.h"

namespace py = pybind11;

namespace vitadapter {

using Address = std::uintptr_t;

template <typename T = void>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

// Lets other Python threads run in its scope. Not pybind's: when the interpreter ends, Python
// before 3.14 ends the other threads where they wait for its lock, by unwinding their stacks, and
// pybind's destructor lets nothing pass: the process aborts.
class WithoutLock {
 public:
  WithoutLock() : state_(PyEval_SaveThread()) {}
  ~WithoutLock() noexcept(false) { PyEval_RestoreThread(state_); }
  WithoutLock(const WithoutLock&) = delete;
  WithoutLock& operator=(const WithoutLock&) = delete;

 private:
  PyThreadState* const state_;
};

inline DType dtype_of(int code) {
  VITADAPTER_CHECK(code >= 0 && code <= static_cast<int>(DType::kFloat64), "unknown dtype code");
  return static_cast<DType>(code);
}

// OpenMP runtimes end the process where they cannot start as many threads as they are asked for.
inline int threads(int asked) {
  VITADAPTER_CHECK(asked >= 1, "num_threads must be 1 or more");
  return std::min(asked, 1024);
}

// The launchers that work on rows of tokens one by one.
void define_rows(py::module_& module);

}  // namespace vitadapter
