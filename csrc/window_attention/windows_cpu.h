// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// Windows over tasks, and the rows of a window's tokens in and out of memory that kernels multiply.
#pragma once

#include <type_traits>

#include "common/workers.h"
#include "window_attention/multiply_cpu.h"
#include "window_attention/params.h"

namespace vitadapter::VITADAPTER_ISA::window_attention {

// Queries that are worked on together: their logits stay in L1.
constexpr int64_t kBlockRows = 24;

// One head of one window: where its real tokens lie, and how many zeros pad it.
struct Window {
  int64_t batch, head;
  int64_t tokens;
  const int64_t* token;  // [tokens]: places in the grid
  double padding;
};

class Windows {
 public:
  explicit Windows(const WindowAttentionParams& p)
      : p_(p),
        side_h_(side(p.hw.h)),
        side_w_(side(p.hw.w)),
        down_((p.hw.h + side_h_ - 1) / side_h_),
        across_((p.hw.w + side_w_ - 1) / side_w_) {}

  int64_t tasks() const { return p_.batch * down_ * across_ * p_.heads; }
  int64_t most_tokens() const { return side_h_ * side_w_; }

  // Writes the places of the window's tokens to `token`, which has room for most_tokens().
  Window find(int64_t task, int64_t* token) const {
    Window window{};
    window.head = task % p_.heads;
    const int64_t index = task / p_.heads % (down_ * across_);
    window.batch = task / p_.heads / (down_ * across_);
    const int64_t top = index / across_ * side_h_, left = index % across_ * side_w_;
    const int64_t rows = p_.hw.h - top < side_h_ ? p_.hw.h - top : side_h_;
    const int64_t columns = p_.hw.w - left < side_w_ ? p_.hw.w - left : side_w_;
    window.tokens = rows * columns;
    window.token = token;
    for (int64_t y = top; y < top + rows; ++y) {
      for (int64_t x = left; x < left + columns; ++x) *token++ = y * p_.hw.w + x;
    }
    if (p_.window_size > 0)
      window.padding = static_cast<double>(p_.window_size) * static_cast<double>(p_.window_size) -
                       static_cast<double>(window.tokens);
    return window;
  }

 private:
  int64_t side(int64_t grid) const {
    return p_.window_size > 0 && p_.window_size < grid ? p_.window_size : grid;
  }

  const WindowAttentionParams& p_;
  const int64_t side_h_, side_w_, down_, across_;
};

// The rows of one head in a tensor of tokens.
template <typename T>
struct Rows {
  T* first;
  int64_t stride;

  T* of(const Window& window, int64_t i) const { return first + window.token[i] * stride; }
};

// which: 0 query, 1 key, 2 value.
template <typename T>
inline Rows<const T> input_rows(const WindowAttentionParams& p, const Window& window, int which) {
  const T* first = static_cast<const T*>(p.qkv) + window.batch * p.qkv_stride_b +
                   (which * p.heads + window.head) * p.channels;
  return {first, p.qkv_stride_n};
}

// Rows of a dense [B, h * w, parts, M, D].
template <typename T>
inline Rows<T> dense_rows(const WindowAttentionParams& p, const Window& window, T* data, int parts,
                          int part) {
  const int64_t row = parts * p.heads * p.channels, tokens = int64_t{p.hw.h} * p.hw.w;
  return {data + window.batch * tokens * row + (part * p.heads + window.head) * p.channels, row};
}

// Of logits: as wide as those of products, where they have an exponential.
#ifdef VITADAPTER_AVX512
template <typename C>
using LogitVec = std::conditional_t<std::is_same_v<C, float>, Wide<C>, Vec<C>>;
#else
template <typename C>
using LogitVec = Vec<C>;
#endif

template <typename C, typename V>
inline C add_lanes(V v) {
  C lane[V::kLanes], sum = 0;
  v.store(lane);
  for (C part : lane) sum += part;
  return sum;
}

template <typename T, typename C>
inline void copy_row(const T* from, int64_t count, C scale, C* to) {
  using V = Vec<C>;
  int64_t d = 0;
  for (; count - d >= V::kLanes; d += V::kLanes) (V::load(from + d) * V::set(scale)).store(to + d);
  for (; d < count; ++d) to[d] = static_cast<C>(to_float(from[d])) * scale;
}

template <typename C, typename T>
inline void store_row(const C* from, int64_t count, C scale, T* to) {
  using V = Vec<C>;
  int64_t d = 0;
  for (; count - d >= V::kLanes; d += V::kLanes) (V::load(from + d) * V::set(scale)).store(to + d);
  for (; d < count; ++d) from_compute(from[d] * scale, to + d);
}

// Tokens begin ... begin + count - 1 as rows `to_row` apart.
template <typename T, typename C>
inline void load_rows(const Window& window, Rows<const T> from, int64_t begin, int64_t count,
                      int64_t channels, C* to, int64_t to_row) {
  for (int64_t i = 0; i < count; ++i)
    copy_row(from.of(window, begin + i), channels, C(1), to + i * to_row);
}

// All tokens as a right matrix of one row for each token. A panel is read from end to end: rows a
// power of two apart would share a quarter of the sets of L1.
template <typename T, typename C>
inline Right<C> pack(const Window& window, Rows<const T> from, int64_t channels, C scale, C* to) {
  const Right<C> packed{to, kPanel<C>, window.tokens * kPanel<C>};
  for (int64_t i = 0; i < window.tokens; ++i, to += kPanel<C>) {
    const T* row = from.of(window, i);
    for (int64_t d = 0; d < channels; d += kPanel<C>)
      copy_row(row + d, channels - d < kPanel<C> ? channels - d : kPanel<C>, scale,
               to + d / kPanel<C> * packed.panel);
  }
  return packed;
}

// All tokens as a right matrix of one column for each token.
template <typename T, typename C>
inline Right<C> pack_transposed(const Window& window, Rows<const T> from, int64_t channels, C scale,
                                C* to) {
  using V = Vec<C>;
  const Right<C> packed{to, kPanel<C>, channels * kPanel<C>};
  const auto column = [&](int64_t i) { return to + i / kPanel<C> * packed.panel + i % kPanel<C>; };
  const int64_t tiled_tokens = window.tokens / V::kLanes * V::kLanes,
                tiled_channels = channels / V::kLanes * V::kLanes;
  for (int64_t i = 0; i < tiled_tokens; i += V::kLanes) {
    for (int64_t d = 0; d < tiled_channels; d += V::kLanes) {
      V tile[V::kLanes];
      for (int k = 0; k < V::kLanes; ++k)
        tile[k] = V::load(from.of(window, i + k) + d) * V::set(scale);
      V::transpose(tile);
      for (int k = 0; k < V::kLanes; ++k) tile[k].store(column(i) + (d + k) * kPanel<C>);
    }
  }
  for (int64_t i = 0; i < window.tokens; ++i) {
    const T* row = from.of(window, i);
    for (int64_t d = i < tiled_tokens ? tiled_channels : 0; d < channels; ++d)
      column(i)[d * kPanel<C>] = static_cast<C>(to_float(row[d])) * scale;
  }
  return packed;
}

// Room for either form of the largest window.
template <typename C>
inline int64_t packed_size(int64_t tokens, int64_t channels) {
  const int64_t rows = tokens * round_up(channels, kPanel<C>);
  const int64_t columns = round_up(tokens, kPanel<C>) * channels;
  return rows > columns ? rows : columns;
}

}  // namespace vitadapter::VITADAPTER_ISA::window_attention
