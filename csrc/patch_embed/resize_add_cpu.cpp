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

// A combined row of 37 pixels and 1024 channels is 150 kB: it stays in L2. Shorter runs were slower
// (L@1024, one thread of an AMD EPYC: 2.8 ms, with 256 channels 3.4).
constexpr int64_t kChannelRun = 1024;

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

// Calls done(c, sum) with the sums over k of weight[k] * from[k * stride + c]: four vectors of
// channels at a time, so that a weight is loaded once for all of them, then one, then single ones.
template <int kVecs, typename C, typename S, typename Done>
inline void combine_vectors(const S* from, int64_t stride, const C* weight, int64_t count,
                            int64_t c, Done&& done) {
  using V = Vec<C>;
  V sum[kVecs];
  for (V& s : sum) s = V::set(0);
  for (int64_t k = 0; k < count; ++k) {
    const V w = V::set(weight[k]);
    for (int v = 0; v < kVecs; ++v)
      sum[v] = V::fma(w, V::load(from + k * stride + c + v * V::kLanes), sum[v]);
  }
  for (int v = 0; v < kVecs; ++v) done(c + v * V::kLanes, sum[v]);
}

template <typename C, typename S, typename Done>
inline void combine(const S* from, int64_t stride, const C* weight, int64_t count, int64_t n,
                    Done&& done) {
  constexpr int kLanes = Vec<C>::kLanes;
  int64_t c = 0;
  for (; c + 4 * kLanes <= n; c += 4 * kLanes)
    combine_vectors<4>(from, stride, weight, count, c, done);
  for (; c + kLanes <= n; c += kLanes) combine_vectors<1>(from, stride, weight, count, c, done);
  for (; c < n; ++c) {
    C sum = 0;
    for (int64_t k = 0; k < count; ++k) sum += weight[k] * to_float(from[k * stride + c]);
    done(c, sum);
  }
}

template <typename T, typename C>
inline Vec<C> load_like(Vec<C>, const T* from) {
  return Vec<C>::load(from);
}
template <typename T, typename C>
inline C load_like(C, const T* from) {
  return to_float(*from);
}
template <typename C, typename O>
inline void store_like(Vec<C> value, O* to) {
  value.store(to);
}
template <typename C, typename O>
inline void store_like(C value, O* to) {
  from_compute(value, to);
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

  void run_task(int64_t task, C* rows) {
    const int64_t i = task / runs, first = task % runs * kChannelRun;
    const int64_t n = p.channels - first < kChannelRun ? p.channels - first : kChannelRun;
    const Range above = y.range(i);
    const int64_t row = source_w * p.channels;
    const S* source = static_cast<const S*>(p.source) + above.first * row + first;
    for (int64_t s = 0; s < source_w; ++s) {
      C* to = rows + s * kChannelRun;
      combine(source + s * p.channels, row, y.weights(i), above.last - above.first + 1, n,
              [&](int64_t c, auto sum) { store_like(sum, to + c); });
    }
    const T* bias = p.bias ? static_cast<const T*>(p.bias) + first : nullptr;
    const int64_t image = target_h * target_w * p.channels;
    for (int64_t j = 0; j < target_w; ++j) {
      const Range beside = x.range(j);
      const int64_t at = (i * target_w + j) * p.channels + first;
      const T* tokens = p.tokens ? static_cast<const T*>(p.tokens) + at : nullptr;
      O* out = static_cast<O*>(p.out) + at;
      combine(rows + beside.first * kChannelRun, kChannelRun, x.weights(j),
              beside.last - beside.first + 1, n, [&](int64_t c, auto sum) {
                if (bias) sum = sum + load_like(sum, bias + c);
                for (int64_t b = 0; b < p.batch; ++b) {
                  auto total = sum;
                  if (tokens) total = total + load_like(sum, tokens + b * image + c);
                  store_like(total, out + b * image + c);
                }
              });
    }
  }

  static void work(void* context, TaskQueue& queue) {
    ResizeAdd& self = *static_cast<ResizeAdd*>(context);
    Scratch<C> rows(self.source_w * kChannelRun);
    int64_t task;
    while (queue.take(&task)) self.run_task(task, rows);
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
