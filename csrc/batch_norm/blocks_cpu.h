// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// What forward and backward share: blocks of tokens, strips of channels, the affine map of each
// channel. Sums are made block by block and added up in the order of the blocks, so that results
// do not depend on the number of threads.
#pragma once

#include <cmath>

#include "batch_norm/params.h"
#include "common/scratch.h"
#include "common/simd.h"
#include "common/workers.h"

namespace vitadapter::VITADAPTER_ISA {
namespace batch_norm {

constexpr int64_t kBlockTokens = 128;  // a strip of them, 16 kB, stays in L1
constexpr int kStripVecs = 4;

// Tokens of one image that one task works on.
struct Block {
  int64_t batch, first, tokens;
};

class Blocks {
 public:
  explicit Blocks(const BatchNormParams& p)
      : p_(p), per_image_((p.num_tokens + kBlockTokens - 1) / kBlockTokens) {}

  int64_t count() const { return p_.batch * per_image_; }
  Block operator[](int64_t index) const {
    const int64_t first = index % per_image_ * kBlockTokens, left = p_.num_tokens - first;
    return {index / per_image_, first, left < kBlockTokens ? left : kBlockTokens};
  }

 private:
  const BatchNormParams& p_;
  const int64_t per_image_;
};

template <typename V_, int kCount>
struct Strip {
  using V = V_;
  static constexpr int kVecs = kCount, kChannels = kCount * V::kLanes;
};

// Calls run(strip, c) for strips of channels from c on: wide ones, then what is left.
template <typename C, typename Run>
inline void over_strips(int64_t channels, Run&& run) {
  using Wide = Strip<Vec<C>, kStripVecs>;
  using Narrow = Strip<Vec<C>, 1>;
  int64_t c = 0;
  for (; c + Wide::kChannels <= channels; c += Wide::kChannels) run(Wide{}, c);
  for (; c + Narrow::kChannels <= channels; c += Narrow::kChannels) run(Narrow{}, c);
  for (; c < channels; ++c) run(Strip<Vec<C, 1>, 1>{}, c);
}

// (token - mean) * scale + bias. Not token * scale + shift, which cancels where the mean is large.
template <typename C>
class Affine {
 public:
  explicit Affine(const BatchNormParams& p) : scale_(p.channels), inverse_(p.channels), p_(p) {
    for (int64_t c = 0; c < p.channels; ++c) {
      inverse_[c] = static_cast<C>(1 / std::sqrt(static_cast<double>(variance()[c]) + p.eps));
      scale_[c] = inverse_[c] * static_cast<const C*>(p.weight)[c];
    }
  }

  const C* mean() const { return static_cast<const C*>(p_.mean); }
  const C* variance() const { return static_cast<const C*>(p_.variance); }
  const C* bias() const { return static_cast<const C*>(p_.bias); }
  const C* scale() { return scale_; }
  const C* inverse() { return inverse_; }  // 1 / standard deviation

 private:
  Scratch<C> scale_, inverse_;
  const BatchNormParams& p_;
};

// Runs work.run(block index) for every block on the threads of the call.
template <typename Work>
void run_blocks(const BatchNormParams& p, Work& work) {
  run_workers(
      Blocks(p).count(), p.num_threads,
      [](void* work, TaskQueue& queue) {
        for (int64_t index; queue.take(&index);) static_cast<Work*>(work)->run(index);
      },
      &work);
}

}  // namespace batch_norm
}  // namespace vitadapter::VITADAPTER_ISA
