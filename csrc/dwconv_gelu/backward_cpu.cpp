// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// Backward on the CPU. Tasks are those of forward. Running down the rows, a vector of channels
// keeps the last three rows of the gradient before GELU, from which the gradient of the tokens
// follows one row behind; the two rows beyond the band are computed by both its neighbors. Weight
// and bias gradients are summed by band and the bands added in order: bit-equal for any number of
// threads.
#include "common/gelu_cpu.h"
#include "dwconv_gelu/rows_cpu.h"

namespace vitadapter::VITADAPTER_ISA {
namespace {

using namespace dwconv_gelu;

// Adds the products of a row's gradients with the pixels under each tap: [10], the bias last.
template <typename V, typename T, typename C>
inline void add_weight_gradient(const Row<T> rows[3], const C* gradient, int64_t w, V sums[10]) {
  const T* from[3] = {rows[0].first, rows[1].first, rows[2].first};
  V sum[kTaps + 1];
  for (V& s : sum) s = V::set(0);
  V before = V::set(0), here = V::load(gradient);
  for (int64_t x = 0; x < w; ++x) {
    gradient += V::kLanes;
    const V after = x + 1 < w ? V::load(gradient) : V::set(0);
    for (int r = 0; r < 3; ++r) {
      const V pixel = V::load(from[r]);
      from[r] += rows[r].step;
      sum[3 * r] = V::fma(pixel, after, sum[3 * r]);
      sum[3 * r + 1] = V::fma(pixel, here, sum[3 * r + 1]);
      sum[3 * r + 2] = V::fma(pixel, before, sum[3 * r + 2]);
    }
    sum[kTaps] = sum[kTaps] + here;
    before = here;
    here = after;
  }
  for (int t = 0; t <= kTaps; ++t) sums[t] = sums[t] + sum[t];
}

template <typename T>
struct Work {
  using C = Compute<T>;

  const DwconvGeluParams& p;
  C* partial;  // [bands, 10, C], or null

  template <typename V>
  void run_vector(const Band& band, int64_t c, Weights<T>& weights, C* ring) const {
    const int64_t first = band.batch * p.num_tokens + band.first_token;
    const Image<T> tokens(static_cast<const T*>(p.tokens) + band.batch * p.tokens_stride_b +
                              band.first_token * p.tokens_stride_n,
                          p.tokens_stride_n, band.h, band.w);
    const Image<T> grad_out(static_cast<const T*>(p.grad_out) + band.batch * p.grad_out_stride_b +
                                band.first_token * p.grad_out_stride_n,
                            p.grad_out_stride_n, band.h, band.w);
    T* grad_tokens =
        p.grad_tokens ? static_cast<T*>(p.grad_tokens) + first * p.channels + c : nullptr;
    const Taps<V> taps = weights.template forward<V>(c);
    const Taps<V> turned = weights.template backward<V>(c);
    V sums[kTaps + 1];
    for (V& s : sums) s = V::set(0);

    const int64_t row_size = band.w * V::kLanes, beyond = grad_tokens ? 1 : 0;
    auto ring_row = [&](int64_t y) { return ring + (y + 3) % 3 * row_size; };
    for (int64_t y = band.y_begin - beyond; y < band.y_end + beyond; ++y) {
      C* gradient = ring_row(y);
      if (y < 0 || y >= band.h) {
        std::memset(gradient, 0, row_size * sizeof(C));
      } else {
        const Row<T> rows[3] = {tokens.row(y - 1, c), tokens.row(y, c), tokens.row(y + 1, c)};
        const Row<T> from = grad_out.row(y, c);
        convolve_row(rows, band.w, taps, gradient, V::kLanes);
        for (int64_t x = 0; x < band.w; ++x) {
          const V slope = gelu<true>(V::load(gradient + x * V::kLanes));
          const T* at = from.first + x * from.step;
          __builtin_prefetch(at + from.to_next_row);
          (V::load(at) * slope).store(gradient + x * V::kLanes);
        }
        if (partial && y >= band.y_begin && y < band.y_end)
          add_weight_gradient(rows, gradient, band.w, sums);
      }
      if (!grad_tokens || y <= band.y_begin) continue;
      const Row<C> rows[3] = {
          {ring_row(y - 2), V::kLanes}, {ring_row(y - 1), V::kLanes}, {ring_row(y), V::kLanes}};
      T* to = grad_tokens + (y - 1) * band.w * p.channels;
      convolve_row(rows, band.w, turned, to, p.channels);
    }
    if (!partial) return;
    for (int t = 0; t <= kTaps; ++t)
      sums[t].store(partial + (band.index * (kTaps + 1) + t) * p.channels + c);
  }

  void run(TaskQueue& queue) const {
    const Bands bands(p);
    Weights<T> weights(p);
    Scratch<C> ring(3 * bands.widest() * Vec<C>::kLanes);
    for (int64_t task; queue.take(&task);) {
      const Band band = bands[task];
      for_each_vector<C>(band.c_begin, band.c_end, [&](auto vector, int64_t c) {
        run_vector<decltype(vector)>(band, c, weights, ring);
      });
    }
  }

  void reduce(int64_t bands) const {
    T* grad_weight = static_cast<T*>(p.grad_weight);
    T* grad_bias = static_cast<T*>(p.grad_bias);
    for (int t = 0; t <= kTaps; ++t) {
      for (int64_t c = 0; c < p.channels; ++c) {
        C sum = 0;
        for (int64_t b = 0; b < bands; ++b) sum += partial[(b * (kTaps + 1) + t) * p.channels + c];
        if (t < kTaps && grad_weight) from_compute(sum, grad_weight + c * kTaps + t);
        if (t == kTaps && grad_bias) from_compute(sum, grad_bias + c);
      }
    }
  }
};

}  // namespace

void dwconv_gelu_backward(const DwconvGeluParams& p) {
  with_type(p.dtype, p.tokens, [&](auto* tokens) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(tokens)>>;
    const Bands bands(p);
    const bool sums = p.grad_weight || p.grad_bias;
    Scratch<Compute<T>> partial(sums ? bands.count() * (kTaps + 1) * p.channels : 0);
    Work<T> work{p, sums ? partial : static_cast<Compute<T>*>(nullptr)};
    run_workers(
        bands.tasks(), p.num_threads,
        [](void* work, TaskQueue& queue) { static_cast<Work<T>*>(work)->run(queue); }, &work);
    if (sums) work.reduce(bands.count());
  });
}

}  // namespace vitadapter::VITADAPTER_ISA
