// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// One task is a block of rows. A row stays in L1 for its three passes: mean, squared deviations
// from it, result.
#include "common/simd.h"
#include "common/workers.h"
#include "token_rows/params.h"

namespace vitadapter::VITADAPTER_ISA {
namespace {

constexpr int64_t kBlockRows = 32;

// Sums term(vector at c) over a row: four sums at once, since one would wait for each addition.
template <typename Term>
float sum_over(int64_t channels, const float* row, Term&& term) {
  using V = Vec<float>;
  using One = Vec<float, 1>;
  constexpr int kLanes = V::kLanes;
  V sums[4] = {V::set(0), V::set(0), V::set(0), V::set(0)};
  int64_t c = 0;
  for (; c + 4 * kLanes <= channels; c += 4 * kLanes) {
    for (int i = 0; i < 4; ++i) sums[i] = sums[i] + term(V::load(row + c + i * kLanes));
  }
  for (; c + kLanes <= channels; c += kLanes) sums[0] = sums[0] + term(V::load(row + c));
  float lanes[4] = {0, 0, 0, 0};
  V::add_sums(sums, lanes);
  float total = (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
  for (; c < channels; ++c) total += term(One::load(row + c)).lane[0];
  return total;
}

void normalize(const NormalizeRowsParams& p, int64_t index) {
  using V = Vec<float>;
  using One = Vec<float, 1>;
  const float* const row = p.rows + index * p.channels;
  float* const out = p.out + index * p.channels;
  const float mean = sum_over(p.channels, row, [](auto x) { return x; }) / p.channels;
  const float squares = sum_over(p.channels, row, [&](auto x) {
    const auto away = x - decltype(x)::set(mean);
    return away * away;
  });
  const float rstd =
      static_cast<float>(1 / std::sqrt(static_cast<double>(squares) / p.channels + p.eps));
  p.mean[index] = mean;
  p.rstd[index] = rstd;
  const auto write = [&](auto lanes, int64_t c) {
    using L = decltype(lanes);
    const L unit = (L::load(row + c) - L::set(mean)) * L::set(rstd);
    L::fma(unit, L::load(p.weight + c), L::load(p.bias + c)).store(out + c);
  };
  int64_t c = 0;
  for (; c + V::kLanes <= p.channels; c += V::kLanes) write(V{}, c);
  for (; c < p.channels; ++c) write(One{}, c);
}

void work(void* context, TaskQueue& queue) {
  const auto& p = *static_cast<const NormalizeRowsParams*>(context);
  for (int64_t block; queue.take(&block);) {
    const int64_t first = block * kBlockRows, left = p.num_rows - first;
    for (int64_t i = 0; i < (left < kBlockRows ? left : kBlockRows); ++i) normalize(p, first + i);
  }
}

}  // namespace

void normalize_rows(const NormalizeRowsParams& p) {
  run_workers((p.num_rows + kBlockRows - 1) / kBlockRows, p.num_threads, work,
              const_cast<NormalizeRowsParams*>(&p));
}

}  // namespace vitadapter::VITADAPTER_ISA
