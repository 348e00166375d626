// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// Forward on the CPU. A task is a band of rows and a chunk of channels, which stay in L2; within it
// a vector of channels at a time runs down the rows, and each row from left to right.
#include "common/gelu_cpu.h"
#include "dwconv_gelu/rows_cpu.h"

namespace vitadapter::VITADAPTER_ISA {
namespace {

using namespace dwconv_gelu;

template <typename T>
void run_band(const DwconvGeluParams& p, const Band& band, Weights<T>& weights, Compute<T>* sums) {
  const Image<T> image(static_cast<const T*>(p.tokens) + band.batch * p.tokens_stride_b +
                           band.first_token * p.tokens_stride_n,
                       p.tokens_stride_n, band.h, band.w);
  T* out = static_cast<T*>(p.out) + (band.batch * p.num_tokens + band.first_token) * p.channels;
  for_each_vector<Compute<T>>(band.c_begin, band.c_end, [&](auto vector, int64_t c) {
    using V = decltype(vector);
    const Taps<V> taps = weights.template forward<V>(c);
    for (int64_t y = band.y_begin; y < band.y_end; ++y) {
      const Row<T> rows[3] = {image.row(y - 1, c), image.row(y, c), image.row(y + 1, c)};
      T* to = out + y * band.w * p.channels + c;
      convolve_row(rows, band.w, taps, sums, V::kLanes);
      for (int64_t x = 0; x < band.w; ++x)
        gelu<false>(V::load(sums + x * V::kLanes)).store(to + x * p.channels);
    }
  });
}

}  // namespace

void dwconv_gelu_forward(const DwconvGeluParams& p) {
  with_type(p.dtype, p.tokens, [&](auto* tokens) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(tokens)>>;
    run_workers(
        Bands(p).tasks(), p.num_threads,
        [](void* params, TaskQueue& queue) {
          const DwconvGeluParams& p = *static_cast<const DwconvGeluParams*>(params);
          const Bands bands(p);
          Weights<T> weights(p);
          Scratch<Compute<T>> sums(bands.widest() * Vec<Compute<T>>::kLanes);
          for (int64_t task; queue.take(&task);) run_band<T>(p, bands[task], weights, sums);
        },
        const_cast<DwconvGeluParams*>(&p));
  });
}

}  // namespace vitadapter::VITADAPTER_ISA
