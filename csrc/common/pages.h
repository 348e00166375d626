// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// Large memory that was never touched costs more than the kernel that fills it: the system zeroes
// it page by page, 1 us for each 4 KiB. It does so in pages of 2 MiB where it is asked to.
#pragma once

#include <cstdint>
#include <cstdlib>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace vitadapter {

// Asks for huge pages under those parts of the memory that are whole ones. Only a hint.
inline void prefer_huge_pages(uintptr_t begin, uint64_t bytes) {
#if defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = uintptr_t{1} << 21;
  const uintptr_t first = (begin + kPage - 1) / kPage * kPage,
                  last = (begin + bytes) / kPage * kPage;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)begin, (void)bytes;
#endif
}

// Asks for huge pages under what malloc hands out next, in this thread: libraries that allocate
// their results themselves do not ask. malloc puts a freed block in front of all others.
inline void prefer_huge_pages_next(uint64_t bytes) {
#if defined(MADV_HUGEPAGE) && defined(__GLIBC__)
  void* block = std::malloc(bytes);
  if (block == nullptr) return;
  prefer_huge_pages(reinterpret_cast<uintptr_t>(block), bytes);
  std::free(block);
#else
  (void)bytes;
#endif
}

}  // namespace vitadapter
