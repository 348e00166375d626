// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

#include "common/kept_memory.h"

#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <list>
#include <mutex>
#include <new>

#include "common/pages.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(begin, bytes) ((void)(begin), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(begin, bytes) ((void)(begin), (void)(bytes))
#endif

namespace vitadapter {
namespace {

constexpr uint64_t kPage = uint64_t{1} << 21;

struct Unused {
  void* data;
  uint64_t capacity;
};

// Never destroyed: tensors may outlive static objects.
struct Kept {
  std::mutex mutex;
  std::list<Unused> unused;  // the oldest first
  uint64_t unused_bytes = 0, in_use = 0, most_in_use = 0;
  uint64_t limit = UINT64_MAX;
};

Kept& kept() {
  static Kept& all = *new Kept;
  // A forked child has none of the threads that might hold the lock.
  static const int error = pthread_atfork([] { all.mutex.lock(); }, [] { all.mutex.unlock(); },
                                          [] { all.mutex.unlock(); });
  (void)error;
  return all;
}

using Lock = std::lock_guard<std::mutex>;

// Whole huge pages, or null.
void* map_pages(uint64_t capacity) {
  void* all =
      mmap(nullptr, capacity + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (all == MAP_FAILED) return nullptr;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(all);
  const uintptr_t first = (begin + kPage - 1) / kPage * kPage;
  if (first > begin) munmap(all, first - begin);
  const uint64_t behind = begin + kPage - first;
  if (behind > 0) munmap(reinterpret_cast<void*>(first + capacity), behind);
  prefer_huge_pages(first, capacity);
  return reinterpret_cast<void*>(first);
}

void unmap(void* data, uint64_t capacity) {
  ASAN_UNPOISON_MEMORY_REGION(data, capacity);
  munmap(data, capacity);
}

void drop_oldest(Kept& all) {
  const Unused oldest = all.unused.front();
  all.unused.pop_front();
  all.unused_bytes -= oldest.capacity;
  unmap(oldest.data, oldest.capacity);
}

// The last one freed of the smallest that fit and waste at most a quarter; null if there is none.
void* take_unused(Kept& all, uint64_t wanted, uint64_t* capacity) {
  auto best = all.unused.end();
  for (auto each = all.unused.begin(); each != all.unused.end(); ++each) {
    if (each->capacity < wanted || each->capacity - wanted > wanted / 4) continue;
    if (best == all.unused.end() || each->capacity <= best->capacity) best = each;
  }
  if (best == all.unused.end()) return nullptr;
  void* data = best->data;
  *capacity = best->capacity;
  all.unused_bytes -= best->capacity;
  all.unused.erase(best);
  return data;
}

}  // namespace

KeptBlock* take_block(uint64_t bytes) {
  if (bytes == 0 || bytes > UINT64_MAX / 4) return nullptr;
  Kept& all = kept();
  const Lock lock(all.mutex);
  if (all.limit == 0) return nullptr;
  uint64_t capacity = (bytes + kPage - 1) / kPage * kPage;
  void* data = take_unused(all, capacity, &capacity);
  if (data == nullptr && (data = map_pages(capacity)) == nullptr) return nullptr;
  all.in_use += capacity;
  all.most_in_use = std::max(all.most_in_use, all.in_use);
  while (all.in_use + all.unused_bytes > all.most_in_use * 2) drop_oldest(all);
  // Sanitizers then see what goes beyond its end, or uses it after its tensor has gone.
  ASAN_UNPOISON_MEMORY_REGION(data, bytes);
  ASAN_POISON_MEMORY_REGION(static_cast<char*>(data) + bytes, capacity - bytes);
  return new KeptBlock(data, bytes, capacity);
}

KeptBlock::~KeptBlock() {
  Kept& all = kept();
  const Lock lock(all.mutex);
  all.in_use -= capacity_;
  try {
    all.unused.push_back({data_, capacity_});
  } catch (const std::bad_alloc&) {  // or a destructor would end the process
    unmap(data_, capacity_);
    return;
  }
  ASAN_POISON_MEMORY_REGION(data_, capacity_);
  all.unused_bytes += capacity_;
  while (all.unused_bytes > all.limit) drop_oldest(all);
}

void limit_kept(uint64_t unused_bytes) {
  Kept& all = kept();
  const Lock lock(all.mutex);
  all.limit = unused_bytes;
  while (all.unused_bytes > all.limit) drop_oldest(all);
}

uint64_t free_kept() {
  Kept& all = kept();
  const Lock lock(all.mutex);
  const uint64_t freed = all.unused_bytes;
  while (!all.unused.empty()) drop_oldest(all);
  all.most_in_use = all.in_use;
  return freed;
}

KeptBytes kept_bytes() {
  Kept& all = kept();
  const Lock lock(all.mutex);
  return {all.in_use, all.unused_bytes};
}

}  // namespace vitadapter
