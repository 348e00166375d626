// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

#include "common/workers.h"

#include <dlfcn.h>
#include <unistd.h>

#include <algorithm>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace vitadapter {
namespace {

// Calls fn(data) on every thread of a team: how GCC's parallel regions enter libgomp, and the
// libraries of LLVM and Intel, which offer the same.
using RunTeam = void (*)(void (*fn)(void*), void* data, unsigned num_threads, unsigned flags);

const pid_t loaded_in = getpid();

// The OpenMP runtime that torch brought into this process, or null.
RunTeam find_team() {
  static const RunTeam found = reinterpret_cast<RunTeam>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  // A forked child has none of its parent's threads, and the runtime would wait for them.
  return getpid() == loaded_in ? found : nullptr;
}

void run_threads(int64_t count, void (*work)(void*), void* data) {
  std::vector<std::thread> helpers;
  for (int64_t i = 1; i < count; ++i) {
    try {
      helpers.emplace_back(work, data);
    } catch (const std::system_error&) {
      break;  // The process may start no more threads: those that run share the work.
    }
  }
  work(data);
  for (std::thread& helper : helpers) helper.join();
}

struct Job {
  TaskQueue queue;
  void (*worker)(void* context, TaskQueue& queue);
  void* context;
  std::exception_ptr error;
  std::mutex error_mutex;

  static void run(void* data) {
    Job& job = *static_cast<Job*>(data);
    try {
      job.worker(job.context, job.queue);
    } catch (...) {
      job.queue.stop();
      std::lock_guard<std::mutex> lock(job.error_mutex);
      if (!job.error) job.error = std::current_exception();
    }
  }
};

}  // namespace

void run_workers(int64_t count, int num_threads, void (*worker)(void* context, TaskQueue& queue),
                 void* context) {
  Job job{TaskQueue(count), worker, context, nullptr, {}};
  const int64_t threads = std::min<int64_t>(num_threads, count);
  if (threads <= 1) {
    if (count > 0) Job::run(&job);
  } else if (const RunTeam run_team = find_team()) {
    run_team(Job::run, &job, static_cast<unsigned>(threads), 0);
  } else {
    run_threads(threads, Job::run, &job);
  }
  if (job.error) std::rethrow_exception(job.error);
}

}  // namespace vitadapter
