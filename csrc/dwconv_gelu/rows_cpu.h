// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// Bands of rows over tasks, and the convolution of one row of one vector of channels.
#pragma once

#include "common/scratch.h"
#include "common/simd.h"
#include "common/workers.h"
#include "dwconv_gelu/params.h"

// A namespace of its own: names of two ops that mean different things must not meet in the linker.
namespace vitadapter::VITADAPTER_ISA::dwconv_gelu {

// What a task works on: some rows of one grid of one image, some channels. The partition depends on
// the sizes alone, so sums over tasks do not depend on the number of threads.
struct Band {
  int64_t batch, first_token;  // of the grid
  int64_t h, w, y_begin, y_end;
  int64_t c_begin, c_end;
  int64_t index;  // among the bands of all images
};

constexpr int64_t kBandRows = 16;
// The last chunk has up to twice as many, so that none is narrower than a vector.
constexpr int64_t kChunkChannels = 64;

class Bands {
 public:
  explicit Bands(const DwconvGeluParams& p)
      : p_(p), chunks_(p.channels < kChunkChannels ? 1 : p.channels / kChunkChannels) {
    for (int64_t g = 0; g < p.grids; ++g) {
      per_image_ += bands_of(p.grid_hw[g].h);
      if (p.grid_hw[g].w > widest_) widest_ = p.grid_hw[g].w;
    }
  }

  int64_t widest() const { return widest_; }
  int64_t count() const { return p_.batch * per_image_; }
  int64_t tasks() const { return p_.channels > 0 ? count() * chunks_ : 0; }

  Band operator[](int64_t task) const {
    Band band{};
    const int64_t chunk = task % chunks_;
    band.index = task / chunks_;
    band.c_begin = chunk * kChunkChannels;
    band.c_end = chunk + 1 == chunks_ ? p_.channels : band.c_begin + kChunkChannels;
    band.batch = band.index / per_image_;
    int64_t i = band.index % per_image_, g = 0;
    for (; i >= bands_of(p_.grid_hw[g].h); ++g) {
      i -= bands_of(p_.grid_hw[g].h);
      band.first_token += static_cast<int64_t>(p_.grid_hw[g].h) * p_.grid_hw[g].w;
    }
    band.h = p_.grid_hw[g].h;
    band.w = p_.grid_hw[g].w;
    band.y_begin = i * kBandRows;
    band.y_end = band.y_begin + kBandRows < band.h ? band.y_begin + kBandRows : band.h;
    return band;
  }

 private:
  static int64_t bands_of(int64_t h) { return (h + kBandRows - 1) / kBandRows; }

  const DwconvGeluParams& p_;
  const int64_t chunks_;
  int64_t per_image_ = 0, widest_ = 0;
};

// Calls run(type of vector, first channel) for vectors that cover the channels. The last one
// overlaps the one before; channels fewer than a vector come one by one.
template <typename C, typename Run>
inline void for_each_vector(int64_t begin, int64_t end, Run&& run) {
  constexpr int64_t kLanes = Vec<C>::kLanes;
  if (end - begin < kLanes) {
    for (int64_t c = begin; c < end; ++c) run(Vec<C, 1>{}, c);
    return;
  }
  for (int64_t c = begin; c < end; c += kLanes) run(Vec<C>{}, c + kLanes <= end ? c : end - kLanes);
}

// The taps of a vector of channels, from [9, C], and the bias.
template <typename V>
struct Taps {
  V tap[kTaps], bias;
};

// Weight and bias in the compute type, by tap: [9, C] and [C] of zeros without bias.
template <typename T>
class Weights {
 public:
  using C = Compute<T>;

  explicit Weights(const DwconvGeluParams& p) : channels_(p.channels), data_(10 * p.channels) {
    const T* weight = static_cast<const T*>(p.weight);
    const T* bias = static_cast<const T*>(p.bias);
    for (int64_t c = 0; c < channels_; ++c) {
      for (int t = 0; t < kTaps; ++t) data_[t * channels_ + c] = to_float(weight[c * kTaps + t]);
      if (bias) data_[kTaps * channels_ + c] = to_float(bias[c]);
    }
  }

  template <typename V>
  Taps<V> forward(int64_t c) {
    Taps<V> taps;
    for (int t = 0; t < kTaps; ++t) taps.tap[t] = V::load(data_ + t * channels_ + c);
    taps.bias = V::load(data_ + kTaps * channels_ + c);
    return taps;
  }

  // Of the transposed convolution: the kernel turned by half a turn.
  template <typename V>
  Taps<V> backward(int64_t c) {
    Taps<V> taps;
    for (int t = 0; t < kTaps; ++t) taps.tap[t] = V::load(data_ + (kTaps - 1 - t) * channels_ + c);
    taps.bias = V::set(0);
    return taps;
  }

 private:
  const int64_t channels_;
  Scratch<C> data_;
};

// A row of pixels: the first, the distance of one pixel from the next, and that of the row below. A
// row outside the grid is one pixel of zeros again and again.
template <typename T>
struct Row {
  const T* first;
  int64_t step, to_next_row = 0;
};

template <typename T>
class Image {
 public:
  Image(const T* first, int64_t stride, int64_t h, int64_t w)
      : first_(first), stride_(stride), h_(h), w_(w) {}

  Row<T> row(int64_t y, int64_t channel) const {
    // Wide enough for any vector.
    static const T zeros[32 / sizeof(Compute<T>)] = {};
    if (y < 0 || y >= h_) return {zeros, 0, 0};
    return {first_ + y * w_ * stride_ + channel, stride_, y + 1 < h_ ? w_ * stride_ : 0};
  }

 private:
  const T* first_;
  int64_t stride_, h_, w_;
};

// Writes the sums of taps and pixels for x = 0 ... w - 1. A pixel is loaded once and added to the
// three sums it belongs to. The row below the last is fetched ahead: no prefetcher of the processor
// sees it coming, and B at 1024 takes a quarter longer without.
template <typename V, typename T, typename Out>
inline void convolve_row(const Row<T> rows[3], int64_t w, const Taps<V>& taps, Out* to,
                         int64_t step) {
  const T* from[3] = {rows[0].first, rows[1].first, rows[2].first};
  V before = taps.bias, here = taps.bias;
  for (int64_t x = 0; x < w; ++x) {
    V after = taps.bias;
    __builtin_prefetch(from[2] + rows[2].to_next_row);
    for (int r = 0; r < 3; ++r) {
      const V pixel = V::load(from[r]);
      from[r] += rows[r].step;
      before = V::fma(pixel, taps.tap[3 * r + 2], before);
      here = V::fma(pixel, taps.tap[3 * r + 1], here);
      after = V::fma(pixel, taps.tap[3 * r], after);
    }
    if (x > 0) before.store(to + (x - 1) * step);
    before = here;
    here = after;
  }
  before.store(to + (w - 1) * step);
}

}  // namespace vitadapter::VITADAPTER_ISA::dwconv_gelu
