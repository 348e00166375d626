// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// Table and tokens in, their sum at the token grid out. A task is one target row of a run of
// channels: source rows are combined once for the row, then columns for each of its pixels.
#include "common/scratch.h"
#include "common/simd.h"
#include "common/workers.h"
#include "patch_embed/bicubic.h"

namespace vitadapter::VITADAPTER_ISA {
namespace {

// A combined row of 37 pixels and 256 channels is 37 kB: it stays in L1 or L2.
constexpr int64_t kChannelRun = 256;

// What each target of an axis takes of which sources.
template <typename C>
class Taps {
 public:
  Taps(const Bicubic& axis, bool is_transposed, int64_t targets)
      : most_(most(axis, is_transposed, targets)), range_(targets), weight_(targets * most_) {
    for (int64_t t = 0; t < targets; ++t) {
      range_[t] = sources_of(axis, is_transposed, static_cast<int>(t));
      for (int64_t s = range_[t].first; s <= range_[t].last; ++s)
        weight_[t * most_ + s - range_[t].first] = share_of<C>(axis, is_transposed, t, s);
    }
  }

  const Range& range(int64_t target) { return range_[target]; }
  const C* weights(int64_t target) { return weight_ + target * most_; }

 private:
  static int64_t most(const Bicubic& axis, bool is_transposed, int64_t targets) {
    int64_t most = 1;
    for (int64_t t = 0; t < targets; ++t) {
      const Range range = sources_of(axis, is_transposed, t);
      if (range.last - range.first + 1 > most) most = range.last - range.first + 1;
    }
    return most;
  }

  const int64_t most_;
  Scratch<Range> range_;
  Scratch<C> weight_;
};

// to[c] = sum over k of weight[k] * from[k * stride + c], for n channels.
template <typename C, typename S>
inline void combine(const S* from, int64_t stride, const C* weight, int64_t count, int64_t n,
                    C* to) {
  using V = Vec<C>;
  int64_t c = 0;
  for (; c + V::kLanes <= n; c += V::kLanes) {
    V sum = V::set(0);
    for (int64_t k = 0; k < count; ++k)
      sum = V::fma(V::set(weight[k]), V::load(from + k * stride + c), sum);
    sum.store(to + c);
  }
  for (; c < n; ++c) {
    C sum = 0;
    for (int64_t k = 0; k < count; ++k) sum += weight[k] * to_float(from[k * stride + c]);
    to[c] = sum;
  }
}

// out[c] = row[c] + tokens[c] + bias[c]; the last two may be null.
template <typename C, typename T, typename O>
inline void add(const C* row, const T* tokens, const T* bias, int64_t n, O* out) {
  using V = Vec<C>;
  int64_t c = 0;
  for (; c + V::kLanes <= n; c += V::kLanes) {
    V sum = V::load(row + c);
    if (bias) sum = sum + V::load(bias + c);
    if (tokens) sum = sum + V::load(tokens + c);
    sum.store(out + c);
  }
  for (; c < n; ++c) {
    C sum = row[c];
    if (bias) sum += to_float(bias[c]);
    if (tokens) sum += to_float(tokens[c]);
    from_compute(sum, out + c);
  }
}

template <typename S, typename T, typename O>
struct ResizeAdd {
  using C = Compute<S>;

  const ResizeAddParams& p;
  const int64_t target_h, target_w, source_w, runs;
  Taps<C> y, x;

  explicit ResizeAdd(const ResizeAddParams& params)
      : p(params),
        target_h(targets(p.y, p.is_transposed)),
        target_w(targets(p.x, p.is_transposed)),
        source_w(sources(p.x, p.is_transposed)),
        runs((p.channels + kChannelRun - 1) / kChannelRun),
        y(p.y, p.is_transposed, target_h),
        x(p.x, p.is_transposed, target_w) {}

  void run_task(int64_t task, C* rows, C* pixel) {
    const int64_t i = task / runs, first = task % runs * kChannelRun;
    const int64_t n = p.channels - first < kChannelRun ? p.channels - first : kChannelRun;
    const Range above = y.range(i);
    const int64_t row = source_w * p.channels;
    const S* source = static_cast<const S*>(p.source) + above.first * row + first;
    for (int64_t s = 0; s < source_w; ++s)
      combine(source + s * p.channels, row, y.weights(i), above.last - above.first + 1, n,
              rows + s * kChannelRun);
    const T* bias = p.bias ? static_cast<const T*>(p.bias) + first : nullptr;
    for (int64_t j = 0; j < target_w; ++j) {
      const Range beside = x.range(j);
      combine(rows + beside.first * kChannelRun, kChannelRun, x.weights(j),
              beside.last - beside.first + 1, n, pixel);
      for (int64_t b = 0; b < p.batch; ++b) {
        const int64_t at = ((b * target_h + i) * target_w + j) * p.channels + first;
        const T* tokens = p.tokens ? static_cast<const T*>(p.tokens) + at : nullptr;
        add(pixel, tokens, bias, n, static_cast<O*>(p.out) + at);
      }
    }
  }

  static void work(void* context, TaskQueue& queue) {
    ResizeAdd& self = *static_cast<ResizeAdd*>(context);
    Scratch<C> rows(self.source_w * kChannelRun), pixel(kChannelRun);
    int64_t task;
    while (queue.take(&task)) self.run_task(task, rows, pixel);
  }

  static void run(const ResizeAddParams& params) {
    ResizeAdd self(params);
    run_workers(self.target_h * self.runs, params.num_threads, work, &self);
  }
};

}  // namespace

bool patch_embed_resize_add(const ResizeAddParams& p) {
  return dispatch_types(p, [&](auto source, auto tokens, auto out) {
    ResizeAdd<decltype(source), decltype(tokens), decltype(out)>::run(p);
  });
}

}  // namespace vitadapter::VITADAPTER_ISA
