// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// Work shared out among threads.
#pragma once

#include <atomic>
#include <cstdint>

namespace vitadapter {

// Hands out the indices 0 ... count - 1, each once, to whichever worker asks.
class TaskQueue {
 public:
  explicit TaskQueue(int64_t count) : count_(count) {}

  bool take(int64_t* index) { return (*index = next_++) < count_; }
  void stop() { next_ = count_; }

 private:
  const int64_t count_;
  std::atomic<int64_t> next_{0};
};

// Runs worker(context, queue) on up to num_threads threads over one queue of `count` tasks. A
// worker makes its scratch once, then takes tasks until there are none. The threads are those of
// torch's own OpenMP runtime where the process has one: after torch's GEMM they still spin, and
// would hold the cores against any others (S@512 patch embedding on 2 cores of an AMD EPYC: 2.5 ms,
// with threads of our own 3.6). Elsewhere, and in forked children, threads live for one call. The
// first exception that a worker throws is thrown again here, after all have ended.
void run_workers(int64_t count, int num_threads, void (*worker)(void* context, TaskQueue& queue),
                 void* context);

}  // namespace vitadapter
