// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// One task is a block that stays in L1. GELU and its slope share the exponential.
#include "common/gelu_cpu.h"

#include "common/workers.h"
#include "token_rows/params.h"

namespace vitadapter::VITADAPTER_ISA {
namespace {

constexpr int64_t kBlock = 4096;

template <typename V>
void compute(const GeluRowsParams& p, int64_t at) {
  const V x = V::load(p.rows + at);
  gelu<false>(x).store(p.out + at);
  if (p.grad) (V::load(p.grad + at) * gelu<true>(x)).store(p.grad + at);
}

void work(void* context, TaskQueue& queue) {
  using V = Vec<float>;
  const auto& p = *static_cast<const GeluRowsParams*>(context);
  for (int64_t block; queue.take(&block);) {
    int64_t at = block * kBlock;
    const int64_t end = at + kBlock < p.count ? at + kBlock : p.count;
    for (; at + V::kLanes <= end; at += V::kLanes) compute<V>(p, at);
    for (; at < end; ++at) compute<Vec<float, 1>>(p, at);
  }
}

}  // namespace

void gelu_rows(const GeluRowsParams& p) {
  run_workers((p.count + kBlock - 1) / kBlock, p.num_threads, work,
              const_cast<GeluRowsParams*>(&p));
}

}  // namespace vitadapter::VITADAPTER_ISA
