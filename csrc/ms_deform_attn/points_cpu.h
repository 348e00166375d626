// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// Points of a tile of queries and one head in; per point four pixels to read and four weights out.
//
// The arithmetic of a point does not depend on the channels, so it is done once, a vector of points
// at a time, before the loop that moves the data. Forward and backward share it.
#pragma once

#include <initializer_list>
#include <type_traits>

#include "common/scratch.h"
#include "common/simd.h"
#include "ms_deform_attn/tiles_cpu.h"

namespace vitadapter::VITADAPTER_ISA {

// Works with the points of one tile and head at a time. Point k of the tile's query i is number
// i * per_query + k; arrays are padded to whole vectors.
template <typename C>
class TilePoints {
 public:
  using V = Vec<C>;

  explicit TilePoints(const MsDeformAttnParams& p)
      : per_query(p.levels * p.num_points),
        size((kTileQueries * per_query + V::kLanes - 1) / V::kLanes * V::kLanes),
        p_(p),
        memory_(21 * size + 2 * period()),
        ints_(4 * size + period()) {
    C* next = memory_;
    auto take = [&next](int64_t count) { return (next += count) - count; };
    xy = take(2 * size);
    weight = take(4 * size);
    for (C** array : {&attention, &masked_attention, &near_x, &far_x, &near_y, &far_y, &in_near_x,
                      &in_far_x, &in_near_y, &in_far_y})
      *array = take(size);
    dots = take(4 * size);
    width_ = take(period());
    height_ = take(period());
    pixel = ints_;
    start_ = pixel + 4 * size;
    fill_levels();
  }

  // Fills pixel, weight and attention and, for backward, the factors of the corner weights.
  template <bool kForBackward>
  void compute(const Tile& tile, int64_t head) {
    if (p_.num_points == 4)
      load<4>(tile, head);
    else
      load<0>(tile, head);
    const int64_t count = tile.count * per_query;
    for (int64_t first = 0; first < count; first += period()) {
      for (int64_t j = 0; j < period() && first + j < count; j += V::kLanes)
        compute_vector<kForBackward>(first + j, j);
    }
  }

  const int64_t per_query, size;
  C* xy;         // in pixels of the level
  C* attention;  // after the softmax
  // The corners (x0, y0), (x1, y0), (x0, y1), (x1, y1) of a point lie `size` apart in these two.
  int32_t* pixel;  // index into the S tokens
  C* weight;       // corner weight times attention; 0 outside the map
  // For backward.
  C* masked_attention;                             // 0 where the point reads nothing
  C *near_x, *far_x, *near_y, *far_y;              // factors of the corner weights
  C *in_near_x, *in_far_x, *in_near_y, *in_far_y;  // 1 where that column or row is inside
  C* dots;                                         // scratch, four in a row for every point

 private:
  // After this many points the levels repeat at the same lanes.
  int64_t period() const { return per_query * V::kLanes; }

  void fill_levels() {
    for (int64_t at = 0; at < period(); ++at) {
      int64_t level = at % per_query / p_.num_points, start = 0;
      width_[at] = static_cast<C>(p_.level_hw[level].w);
      height_[at] = static_cast<C>(p_.level_hw[level].h);
      while (level-- > 0)
        start += static_cast<int64_t>(p_.level_hw[level].h) * p_.level_hw[level].w;
      start_[at] = static_cast<int32_t>(start);
    }
  }

  // kPoints is num_points, or 0 to read it at run time: with 4 the inner loops are one vector.
  template <int kPoints>
  void load(const Tile& tile, int64_t head) {
    const int64_t n = per_query, P = kPoints ? kPoints : p_.num_points;
    with_type(p_.points_dtype, p_.points, [&](auto* base) {
      base += tile.batch * p_.points_stride_b + head * 2 * n;
      for (int i = 0; i < tile.count; ++i) {
        const auto* from = base + tile.query[i] * p_.points_stride_q;
        C* to = xy + i * 2 * n;
        for (int64_t l = 0; l < p_.levels; ++l, from += 2 * P, to += 2 * P) {
          const SizeHW hw = p_.level_hw[l];
          C scale_x = 1, scale_y = 1, base_x, base_y;
          if (p_.query_hw) {
            base_x = static_cast<C>(tile.center_x[i] * hw.w - 0.5);
            base_y = static_cast<C>(tile.center_y[i] * hw.h - 0.5);
          } else {
            scale_x = static_cast<C>(hw.w);
            scale_y = static_cast<C>(hw.h);
            base_x = base_y = C(-0.5);
          }
          for (int64_t k = 0; k < P; ++k) {
            to[2 * k] = static_cast<C>(to_float(from[2 * k])) * scale_x + base_x;
            to[2 * k + 1] = static_cast<C>(to_float(from[2 * k + 1])) * scale_y + base_y;
          }
        }
      }
    });
    with_type(p_.weights_dtype, p_.weights, [&](auto* base) {
      base += tile.batch * p_.weights_stride_b + head * n;
      for (int i = 0; i < tile.count; ++i) {
        const auto* from = base + tile.query[i] * p_.weights_stride_q;
        C* to = attention + i * n;
        C peak = 0;
        if (p_.query_hw && n > 0) {
          peak = static_cast<C>(to_float(from[0]));
          for (int64_t k = 1; k < n; ++k) {
            const C logit = static_cast<C>(to_float(from[k]));
            peak = logit > peak ? logit : peak;
          }
        }
        for (int64_t l = 0; l < p_.levels; ++l, from += P, to += P) {
          for (int64_t k = 0; k < P; ++k) to[k] = static_cast<C>(to_float(from[k])) - peak;
        }
      }
    });
    if (p_.query_hw) normalize<kPoints>(tile.count);
  }

  // exp and division of a softmax whose peak has been subtracted.
  template <int kPoints>
  void normalize(int64_t queries) {
    const int64_t n = per_query, P = kPoints ? kPoints : p_.num_points;
    for (int64_t i = 0; i < queries * n; i += V::kLanes)
      V::exp(V::load(attention + i)).store(attention + i);
    for (C *at = attention, *end = at + queries * n; at < end; at += n) {
      C sum = 0;
      for (int64_t l = 0; l < n; l += P) {
        for (int64_t k = 0; k < P; ++k) sum += at[l + k];
      }
      const C inverse = 1 / sum;
      for (int64_t l = 0; l < n; l += P) {
        for (int64_t k = 0; k < P; ++k) at[l + k] *= inverse;
      }
    }
  }

  template <bool kForBackward>
  inline void compute_vector(int64_t i, int64_t level) {
    const V zero = V::set(0), one = V::set(1), minus_one = V::set(-1);
    const V width = V::load(width_ + level), height = V::load(height_ + level);
    V x, y;
    V::load_pairs(xy + 2 * i, &x, &y);
    // A point a pixel or more outside, or NaN, gets attention 0 and some pixel inside.
    auto keep_inside = [&](V a) {
      a = V::keep_if_greater(x, minus_one, V::keep_if_greater(width, x, a));
      return V::keep_if_greater(y, minus_one, V::keep_if_greater(height, y, a));
    };
    const V a = keep_inside(V::load(attention + i)), inside = keep_inside(one);
    const V inside_x = keep_inside(x), inside_y = keep_inside(y);
    const V x0 = V::floor(inside_x), y0 = V::floor(inside_y), x1 = x0 + one, y1 = y0 + one;
    const V dx = inside_x - x0, dy = inside_y - y0;
    const V nx = V::keep_if_greater(x0, minus_one, one - dx),
            fx = V::keep_if_greater(width, x1, dx);
    const V ny = V::keep_if_greater(y0, minus_one, one - dy),
            fy = V::keep_if_greater(height, y1, dy);
    const V near = a * ny, far = a * fy;
    (nx * near).store(weight + i);
    (fx * near).store(weight + size + i);
    (nx * far).store(weight + 2 * size + i);
    (fx * far).store(weight + 3 * size + i);
    store_pixels(i, level, V::max(x0, zero), V::min(x1, width - one), V::max(y0, zero),
                 V::min(y1, height - one));
    if (kForBackward) {
      a.store(masked_attention + i);
      (nx * inside).store(near_x + i);
      (fx * inside).store(far_x + i);
      (ny * inside).store(near_y + i);
      (fy * inside).store(far_y + i);
      V::keep_if_greater(x0, minus_one, inside).store(in_near_x + i);
      V::keep_if_greater(width, x1, inside).store(in_far_x + i);
      V::keep_if_greater(y0, minus_one, inside).store(in_near_y + i);
      V::keep_if_greater(height, y1, inside).store(in_far_y + i);
    }
  }

  inline void store_pixels(int64_t i, int64_t level, V x0, V x1, V y0, V y1) {
    int32_t left[V::kLanes], right[V::kLanes], top[V::kLanes], bottom[V::kLanes], width[V::kLanes];
    x0.store_int(left);
    x1.store_int(right);
    y0.store_int(top);
    y1.store_int(bottom);
    V::load(width_ + level).store_int(width);
    for (int lane = 0; lane < V::kLanes; ++lane) {
      const int32_t upper = start_[level + lane] + top[lane] * width[lane];
      const int32_t lower = start_[level + lane] + bottom[lane] * width[lane];
      pixel[i + lane] = upper + left[lane];
      pixel[size + i + lane] = upper + right[lane];
      pixel[2 * size + i + lane] = lower + left[lane];
      pixel[3 * size + i + lane] = lower + right[lane];
    }
  }

  const MsDeformAttnParams& p_;
  Scratch<C> memory_;
  Scratch<int32_t> ints_;
  C *width_, *height_;
  int32_t* start_;
};

// One head of one image, [S, D] without gaps, in the compute type. In place, a head's pixels lie
// M * D apart: at M * D = 384 that leaves a quarter of the cache's sets to them, and gathering from
// the copy is 1.5 to 1.8 times faster, copying included (B at 1024, AMD EPYC, one thread).
template <typename T>
inline void copy_head(const MsDeformAttnParams& p, int64_t batch, int64_t head, Compute<T>* to) {
  const int64_t D = p.channels;
  const T* from = static_cast<const T*>(p.value) + batch * p.value_stride_b + head * D;
  for (int64_t s = 0; s < p.tokens; ++s, from += p.value_stride_s, to += D) {
    int64_t d = 0;
    for (; D - d >= Vec<Compute<T>>::kLanes; d += Vec<Compute<T>>::kLanes)
      Vec<Compute<T>>::load(from + d).store(to + d);
    for (; d < D; ++d) to[d] = to_float(from[d]);
  }
}

}  // namespace vitadapter::VITADAPTER_ISA
