// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// One task is a strip of 64 rows, read once and written as 256 bytes of each row of the result. By
// one cache line each, 16 rows, [1024, 384] takes twice as long: where the rows of the result are
// 4 KiB, all of them share few sets of the cache.
#include "common/transpose.h"
#include "common/workers.h"
#include "token_rows/params.h"

namespace vitadapter::VITADAPTER_ISA {
namespace {

constexpr int64_t kStripRows = 64;

template <typename Out>
void work(void* context, TaskQueue& queue) {
  const auto& p = *static_cast<const TransposeRowsParams*>(context);
  for (int64_t strip; queue.take(&strip);) {
    const int64_t first = strip * kStripRows, left = p.num_rows - first;
    transpose<float>(p.rows + first * p.stride, p.stride,
                     static_cast<int>(left < kStripRows ? left : kStripRows),
                     static_cast<int>(p.channels), static_cast<Out*>(p.out) + first, p.num_rows);
  }
}

}  // namespace

void transpose_rows(const TransposeRowsParams& p) {
  run_workers((p.num_rows + kStripRows - 1) / kStripRows, p.num_threads,
              p.out_dtype == DType::kBFloat16 ? work<BFloat16> : work<float>,
              const_cast<TransposeRowsParams*>(&p));
}

}  // namespace vitadapter::VITADAPTER_ISA
