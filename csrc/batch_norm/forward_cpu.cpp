// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// Forward on the CPU: mean and squared deviations of each block, those of all, then one pass that
// normalizes, applies ReLU and changes the layout.
#include "batch_norm/blocks_cpu.h"
#include "common/dispatch.h"
#include "common/transpose.h"

namespace vitadapter::VITADAPTER_ISA {
namespace {

using namespace batch_norm;

template <typename T>
const T* tokens_of(const BatchNormParams& p, const Block& block) {
  return static_cast<const T*>(p.tokens) + block.batch * p.tokens_stride_b +
         block.first * p.tokens_stride_n;
}

// Writes for each block [mean, sum of deviations from it, sum of their squares], each [C]. The sum
// is what rounding left of zero.
constexpr int64_t kMoments = 3;

template <typename T>
struct Moments {
  using C = Compute<T>;

  const BatchNormParams& p;
  C* partial;

  void run(int64_t index) const {
    const Block block = Blocks(p)[index];
    const T* const from = tokens_of<T>(p, block);
    C* const moments = partial + index * kMoments * p.channels;
    over_strips<C>(p.channels, [&](auto strip, int64_t c) {
      using V = typename decltype(strip)::V;
      V mean[strip.kVecs], rest[strip.kVecs], squares[strip.kVecs];
      for (int v = 0; v < strip.kVecs; ++v) mean[v] = rest[v] = squares[v] = V::set(0);
      for (int64_t t = 0; t < block.tokens; ++t) {
        for (int v = 0; v < strip.kVecs; ++v)
          mean[v] = mean[v] + V::load(from + t * p.tokens_stride_n + c + v * V::kLanes);
      }
      for (V& m : mean) m = m * V::set(C(1) / block.tokens);
      for (int64_t t = 0; t < block.tokens; ++t) {
        for (int v = 0; v < strip.kVecs; ++v) {
          const V away = V::load(from + t * p.tokens_stride_n + c + v * V::kLanes) - mean[v];
          rest[v] = rest[v] + away;
          squares[v] = V::fma(away, away, squares[v]);
        }
      }
      for (int v = 0; v < strip.kVecs; ++v) {
        C* const to = moments + c + v * V::kLanes;
        mean[v].store(to);
        rest[v].store(to + p.channels);
        squares[v].store(to + 2 * p.channels);
      }
    });
  }
};

// Chan, Golub and LeVeque 1983: statistics of two sets from those of each.
template <typename C>
void combine(const BatchNormParams& p, const C* partial) {
  Scratch<double> mean(p.channels), squares(p.channels);
  const Blocks blocks(p);
  double count = 0;
  for (int64_t index = 0; index < blocks.count(); ++index) {
    const double tokens = static_cast<double>(blocks[index].tokens);
    const double share = tokens / (count + tokens), weight = count * share;
    const C* const more = partial + index * kMoments * p.channels;
    for (int64_t c = 0; c < p.channels; ++c) {
      const double rest = more[p.channels + c];
      const double away = more[c] + rest / tokens - mean[c];
      mean[c] += away * share;
      squares[c] += more[2 * p.channels + c] - rest * rest / tokens + away * away * weight;
    }
    count += tokens;
  }
  for (int64_t c = 0; c < p.channels; ++c) {
    static_cast<C*>(p.mean)[c] = static_cast<C>(mean[c]);
    static_cast<C*>(p.variance)[c] = static_cast<C>(squares[c] / count);
  }
}

template <typename T, bool has_relu, bool has_planes>
struct Normalize {
  using C = Compute<T>;

  const BatchNormParams& p;
  Affine<C>& affine;

  void run(int64_t index) const {
    const Block block = Blocks(p)[index];
    const T* const from = tokens_of<T>(p, block);
    T* const out = static_cast<T*>(p.out) + block.batch * p.num_tokens * p.channels;
    over_strips<C>(p.channels, [&](auto strip, int64_t c) {
      using V = typename decltype(strip)::V;
      C tile[has_planes ? kBlockTokens * strip.kChannels : 1];
      V mean[strip.kVecs], scale[strip.kVecs], bias[strip.kVecs];
      for (int v = 0; v < strip.kVecs; ++v) {
        mean[v] = V::load(affine.mean() + c + v * V::kLanes);
        scale[v] = V::load(affine.scale() + c + v * V::kLanes);
        bias[v] = V::load(affine.bias() + c + v * V::kLanes);
      }
      for (int64_t t = 0; t < block.tokens; ++t) {
        for (int v = 0; v < strip.kVecs; ++v) {
          const int64_t at = c + v * V::kLanes;
          const V token = V::load(from + t * p.tokens_stride_n + at);
          V result = V::fma(token - mean[v], scale[v], bias[v]);
          if (has_relu) result = V::max(V::set(0), result);
          if (has_planes)
            result.store(tile + t * strip.kChannels + v * V::kLanes);
          else
            result.store(out + (block.first + t) * p.channels + at);
        }
      }
      if (has_planes)
        transpose<C>(tile, strip.kChannels, block.tokens, strip.kChannels,
                     out + c * p.num_tokens + block.first, p.num_tokens);
    });
  }
};

}  // namespace

void batch_norm_forward(const BatchNormParams& p) {
  with_type(p.dtype, p.tokens, [&](auto* tokens) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(tokens)>>;
    using C = Compute<T>;
    {
      Scratch<C> partial(Blocks(p).count() * kMoments * p.channels);
      Moments<T> moments{p, partial};
      run_blocks(p, moments);
      combine<C>(p, partial);
    }
    Affine<C> affine(p);
    dispatch_bool(p.has_relu, [&](auto has_relu) {
      dispatch_bool(p.has_planes, [&](auto has_planes) {
        Normalize<T, has_relu, has_planes> normalize{p, affine};
        run_blocks(p, normalize);
      });
    });
  });
}

}  // namespace vitadapter::VITADAPTER_ISA
