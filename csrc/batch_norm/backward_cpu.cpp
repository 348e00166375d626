// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// Backward on the CPU: the two sums of each block, those of all, then the gradient of the tokens.
// With g the gradient behind the affine map, d = token - mean and i = 1 / deviation, it is
// scale * (g - sum(g) / n - d * i^2 * sum(g * d) / n); weight and bias have i * sum(g * d), sum(g).
#include "batch_norm/blocks_cpu.h"
#include "common/dispatch.h"
#include "common/transpose.h"

namespace vitadapter::VITADAPTER_ISA {
namespace {

using namespace batch_norm;

// Sums of all tokens: of g, of g * d, each [C].
template <typename C>
class Sums {
 public:
  explicit Sums(int64_t channels) : channels_(channels), sum_(2 * channels) {}

  void add(const C* partial) {
    for (int64_t i = 0; i < 2 * channels_; ++i) sum_[i] += partial[i];
  }
  double of_grad(int64_t c) { return sum_[c]; }
  double of_product(int64_t c) { return sum_[channels_ + c]; }

 private:
  const int64_t channels_;
  Scratch<double> sum_;
};

// Writes for each block [sum of g, sum of g * d]. Where the gradient comes in planes, g is laid out
// as tokens in the result's memory, for the second pass.
template <typename T, bool has_relu, bool has_planes>
struct FirstPass {
  using C = Compute<T>;

  const BatchNormParams& p;
  Affine<C>& affine;
  C* partial;

  void run(int64_t index) const {
    const Block block = Blocks(p)[index];
    const T* const tokens = static_cast<const T*>(p.tokens) + block.batch * p.tokens_stride_b;
    const T* const grad = static_cast<const T*>(p.grad_out) + block.batch * p.grad_out_stride_b;
    T* const kept = static_cast<T*>(p.grad_tokens) + block.batch * p.num_tokens * p.channels;
    C* const sums = partial + index * 2 * p.channels;
    over_strips<C>(p.channels, [&](auto strip, int64_t c) {
      using V = typename decltype(strip)::V;
      T tile[has_planes ? kBlockTokens * strip.kChannels : 1];
      if (has_planes)
        transpose<C>(grad + c * p.grad_out_stride_row + block.first, p.grad_out_stride_row,
                     strip.kChannels, block.tokens, tile, strip.kChannels);
      V sum[strip.kVecs], product[strip.kVecs];
      for (V& s : sum) s = V::set(0);
      for (V& s : product) s = V::set(0);
      for (int64_t t = 0; t < block.tokens; ++t) {
        const int64_t n = block.first + t;
        for (int v = 0; v < strip.kVecs; ++v) {
          const int64_t at = c + v * V::kLanes;
          const V away = V::load(tokens + n * p.tokens_stride_n + at) - V::load(affine.mean() + at);
          V g = V::load(has_planes ? tile + t * strip.kChannels + v * V::kLanes
                                   : grad + n * p.grad_out_stride_row + at);
          if (has_relu) g = behind_relu(away, at, g);
          if (has_planes && p.grad_tokens) g.store(kept + n * p.channels + at);
          sum[v] = sum[v] + g;
          product[v] = V::fma(g, away, product[v]);
        }
      }
      for (int v = 0; v < strip.kVecs; ++v) {
        sum[v].store(sums + c + v * V::kLanes);
        product[v].store(sums + p.channels + c + v * V::kLanes);
      }
    });
  }

  template <typename V>
  V behind_relu(V away, int64_t at, V g) const {
    const V result = V::fma(away, V::load(affine.scale() + at), V::load(affine.bias() + at));
    return V::drop_if_at_most(result, V::set(0), g);
  }
};

template <typename T, bool has_relu, bool has_planes>
struct SecondPass {
  using C = Compute<T>;

  const FirstPass<T, has_relu, has_planes>& first;
  C* shift;  // sum(g) / n
  C* slope;  // i^2 * sum(g * d) / n

  void run(int64_t index) const {
    const BatchNormParams& p = first.p;
    Affine<C>& affine = first.affine;
    const Block block = Blocks(p)[index];
    const T* const tokens = static_cast<const T*>(p.tokens) + block.batch * p.tokens_stride_b;
    T* const out = static_cast<T*>(p.grad_tokens) + block.batch * p.num_tokens * p.channels;
    const T* const grad =
        has_planes ? out : static_cast<const T*>(p.grad_out) + block.batch * p.grad_out_stride_b;
    const int64_t stride = has_planes ? p.channels : p.grad_out_stride_row;
    for (int64_t n = block.first; n < block.first + block.tokens; ++n) {
      over_strips<C>(p.channels, [&](auto strip, int64_t c) {
        using V = typename decltype(strip)::V;
        for (int v = 0; v < strip.kVecs; ++v) {
          const int64_t at = c + v * V::kLanes;
          const V away = V::load(tokens + n * p.tokens_stride_n + at) - V::load(affine.mean() + at);
          V g = V::load(grad + n * stride + at);
          if (has_relu && !has_planes) g = first.behind_relu(away, at, g);
          const V centered = g - V::load(shift + at) - away * V::load(slope + at);
          (centered * V::load(affine.scale() + at)).store(out + n * p.channels + at);
        }
      });
    }
  }
};

template <typename T, bool has_relu, bool has_planes>
void run_backward(const BatchNormParams& p) {
  using C = Compute<T>;
  Affine<C> affine(p);
  Sums<C> sums(p.channels);
  const int64_t blocks = Blocks(p).count();
  Scratch<C> partial(blocks * 2 * p.channels);
  FirstPass<T, has_relu, has_planes> first{p, affine, partial};
  run_blocks(p, first);
  for (int64_t index = 0; index < blocks; ++index) sums.add(partial + index * 2 * p.channels);

  const double count = static_cast<double>(p.batch * p.num_tokens);
  Scratch<C> shift(p.channels), slope(p.channels);
  for (int64_t c = 0; c < p.channels; ++c) {
    const double inverse = affine.inverse()[c];
    if (p.grad_bias) static_cast<C*>(p.grad_bias)[c] = static_cast<C>(sums.of_grad(c));
    if (p.grad_weight)
      static_cast<C*>(p.grad_weight)[c] = static_cast<C>(sums.of_product(c) * inverse);
    shift[c] = static_cast<C>(sums.of_grad(c) / count);
    slope[c] = static_cast<C>(sums.of_product(c) * inverse * inverse / count);
  }
  if (!p.grad_tokens) return;
  SecondPass<T, has_relu, has_planes> second{first, shift, slope};
  run_blocks(p, second);
}

}  // namespace

void batch_norm_backward(const BatchNormParams& p) {
  with_type(p.dtype, p.tokens, [&](auto* tokens) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(tokens)>>;
    dispatch_bool(p.has_relu, [&](auto has_relu) {
      dispatch_bool(p.has_planes,
                    [&](auto has_planes) { run_backward<T, has_relu, has_planes>(p); });
    });
  });
}

}  // namespace vitadapter::VITADAPTER_ISA
