// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// One task is a block of rows. A row stays in L1 for its passes: mean, squared deviations from it,
// result; backward, the two sums of its gradient, then the gradient. Those of weight and bias are
// summed block by block, and in the order of the blocks.
#include "common/scratch.h"
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

// Calls run(lanes, c) for all channels: vectors, then what is left.
template <typename Run>
void over_channels(int64_t channels, Run&& run) {
  using V = Vec<float>;
  int64_t c = 0;
  for (; c + V::kLanes <= channels; c += V::kLanes) run(V{}, c);
  for (; c < channels; ++c) run(Vec<float, 1>{}, c);
}

void normalize(const NormalizeRowsParams& p, int64_t index) {
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
  over_channels(p.channels, [&](auto lanes, int64_t c) {
    using L = decltype(lanes);
    const L unit = (L::load(row + c) - L::set(mean)) * L::set(rstd);
    L::fma(unit, L::load(p.weight + c), L::load(p.bias + c)).store(out + c);
  });
}

// With u the row before weight and bias and h = weight * grad, the gradient of the row is
// rstd * (h - mean(h) - u * mean(h * u)). Adds those of weight and bias, u * grad and grad, to
// sums.
void differentiate(const NormalizeRowsParams& p, int64_t index, float* sums) {
  using V = Vec<float>;
  const float* const row = p.rows + index * p.channels;
  const float* const plus = p.plus ? p.plus + index * p.channels : nullptr;
  float* const grad = p.grad + index * p.channels;
  const float mean = p.mean[index], rstd = p.rstd[index];
  const auto unit = [&](auto lanes, int64_t c) {
    using L = decltype(lanes);
    return (L::load(row + c) - L::set(mean)) * L::set(rstd);
  };

  V total[4] = {V::set(0), V::set(0), V::set(0), V::set(0)};  // of h, of h * u
  float rest[2] = {0, 0};
  over_channels(p.channels, [&](auto lanes, int64_t c) {
    using L = decltype(lanes);
    const L u = unit(lanes, c), g = L::load(grad + c), h = g * L::load(p.weight + c);
    L::fma(g, u, L::load(sums + c)).store(sums + c);
    (L::load(sums + p.channels + c) + g).store(sums + p.channels + c);
    if constexpr (L::kLanes == V::kLanes) {
      total[0] = total[0] + h;
      total[1] = V::fma(h, u, total[1]);
    } else {
      rest[0] += h.lane[0];
      rest[1] += (h * u).lane[0];
    }
  });
  float lanes_of[4] = {0, 0, 0, 0};
  V::add_sums(total, lanes_of);
  const float shift = (lanes_of[0] + rest[0]) / p.channels;
  const float slope = (lanes_of[1] + rest[1]) / p.channels;

  over_channels(p.channels, [&](auto lanes, int64_t c) {
    using L = decltype(lanes);
    const L h = L::load(grad + c) * L::load(p.weight + c);
    const L centered = h - L::set(shift) - unit(lanes, c) * L::set(slope);
    const L other = plus ? L::load(plus + c) : L::set(0);
    L::fma(centered, L::set(rstd), other).store(grad + c);
  });
}

struct Task {
  const NormalizeRowsParams& p;
  float* sums;  // [blocks, 2, C], with `p.grad`
};

void work(void* context, TaskQueue& queue) {
  const Task& task = *static_cast<const Task*>(context);
  const NormalizeRowsParams& p = task.p;
  for (int64_t block; queue.take(&block);) {
    const int64_t first = block * kBlockRows, left = p.num_rows - first;
    for (int64_t i = 0; i < (left < kBlockRows ? left : kBlockRows); ++i) {
      normalize(p, first + i);
      if (p.grad) differentiate(p, first + i, task.sums + block * 2 * p.channels);
    }
  }
}

}  // namespace

void normalize_rows(const NormalizeRowsParams& p) {
  const int64_t blocks = (p.num_rows + kBlockRows - 1) / kBlockRows;
  Scratch<float> sums(p.grad ? blocks * 2 * p.channels : 0);
  Task task{p, sums};
  run_workers(blocks, p.num_threads, work, &task);
  if (!p.grad) return;
  Scratch<double> total(2 * p.channels);
  for (int64_t i = 0; i < blocks * 2 * p.channels; ++i) total[i % (2 * p.channels)] += sums[i];
  for (int64_t c = 0; c < p.channels; ++c) {
    p.grad_weight[c] = static_cast<float>(total[c]);
    p.grad_bias[c] = static_cast<float>(total[p.channels + c]);
  }
}

}  // namespace vitadapter::VITADAPTER_ISA
