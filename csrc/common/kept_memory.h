// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// Large memory that is used again instead of going back to the system, which hands it out page by
// page, each filled with zeros.
#pragma once

#include <cstdint>

namespace vitadapter {

// Memory of a tensor: returned to what is kept when it is destroyed, in whatever thread.
class KeptBlock {
 public:
  KeptBlock(void* data, uint64_t bytes, uint64_t capacity)
      : data_(data), bytes_(bytes), capacity_(capacity) {}
  ~KeptBlock();
  KeptBlock(const KeptBlock&) = delete;
  KeptBlock& operator=(const KeptBlock&) = delete;

  void* data() const { return data_; }
  uint64_t bytes() const { return bytes_; }

 private:
  void* const data_;
  const uint64_t bytes_, capacity_;
};

struct KeptBytes {
  uint64_t in_use, unused;
};

// Returns a block in huge pages, or null: nothing may be kept, or the system has no memory. With
// all that is unused they take at most twice what was in use at once since the last call of
// free_kept.
KeptBlock* take_block(uint64_t bytes);

// Unused blocks take at most so much from now on; 0 switches take_block off.
void limit_kept(uint64_t unused_bytes);

// Gives all unused blocks back to the system; returns their bytes.
uint64_t free_kept();

KeptBytes kept_bytes();

}  // namespace vitadapter
