// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

#include "common/workers.h"

#include <algorithm>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace vitadapter {

void run_workers(int64_t count, int num_threads, void (*worker)(void* context, TaskQueue& queue),
                 void* context) {
  TaskQueue queue(count);
  std::exception_ptr error;
  std::mutex error_mutex;

  auto work = [&] {
    try {
      worker(context, queue);
    } catch (...) {
      queue.stop();
      std::lock_guard<std::mutex> lock(error_mutex);
      if (!error) error = std::current_exception();
    }
  };

  std::vector<std::thread> helpers;
  const int64_t wanted = std::min<int64_t>(num_threads, count) - 1;
  for (int64_t i = 0; i < wanted; ++i) {
    try {
      helpers.emplace_back(work);
    } catch (const std::system_error&) {
      break;  // The process may start no more threads: those that run share the work.
    }
  }
  if (count > 0) work();
  for (std::thread& helper : helpers) helper.join();
  if (error) std::rethrow_exception(error);
}

}  // namespace vitadapter
