// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// Backward on the CPU. A task is one head of one image: it owns its slice of every gradient, so
// nothing is shared, nothing is atomic, and the result does not depend on the number of threads.
// The value gradient is summed in a dense [S, D] scratch in the compute type and written once.
#include "common/workers.h"
#include "ms_deform_attn/points_cpu.h"

namespace vitadapter::VITADAPTER_ISA {
namespace {

// For every point of one query: the four dot products of grad_out with the corner values are added
// to dots, and grad_out times the corner weights to the value gradient. Either may be null.
template <int kVecs, typename C, typename T>
inline void scatter(const T* grad_out, const C* value, C* grad_value, int64_t D,
                    const int32_t* pixel, const C* weight, int64_t size, int64_t count, C* dots) {
  using V = Vec<C>;
  V g[kVecs];
  for (int k = 0; k < kVecs; ++k) g[k] = V::load(grad_out + k * V::kLanes);
  for (int64_t i = 0; i < count; ++i) {
    if (dots) {
      V product[4];
      for (int corner = 0; corner < 4; ++corner) {
        const C* from = value + pixel[corner * size + i] * D;
        product[corner] = g[0] * V::load(from);
        for (int k = 1; k < kVecs; ++k)
          product[corner] = V::fma(g[k], V::load(from + k * V::kLanes), product[corner]);
      }
      V::add_sums(product, dots + 4 * i);
    }
    if (grad_value) {
      for (int corner = 0; corner < 4; ++corner) {
        const V w = V::set(weight[corner * size + i]);
        C* to = grad_value + pixel[corner * size + i] * D;
        for (int k = 0; k < kVecs; ++k)
          V::fma(w, g[k], V::load(to + k * V::kLanes)).store(to + k * V::kLanes);
      }
    }
  }
}

template <typename C, typename T>
inline void scatter_channel(const T* grad_out, const C* value, C* grad_value, int64_t D,
                            const int32_t* pixel, const C* weight, int64_t size, int64_t count,
                            C* dots) {
  const C g = to_float(*grad_out);
  for (int64_t i = 0; i < count; ++i) {
    for (int corner = 0; corner < 4; ++corner) {
      const int64_t at = pixel[corner * size + i] * D;
      if (dots) dots[4 * i + corner] += g * value[at];
      if (grad_value) grad_value[at] += g * weight[corner * size + i];
    }
  }
}

// From the dot products s of a point with its four corners:
//   d out / d attention = sum of corner weight * s,  d out / d x = attention * (right - left), ...
// Leaves the gradient of the position in points.xy and that of the attention in points.weight.
template <typename C>
void finish_points(TilePoints<C>& points, int64_t count) {
  using V = Vec<C>;
  for (int64_t i = 0; i < count; i += V::kLanes) {
    auto at = [i](const C* array) { return V::load(array + i); };
    V s[4];
    V::load_rows(points.dots + 4 * i, s);
    const V nx = at(points.near_x), fx = at(points.far_x);
    const V ny = at(points.near_y), fy = at(points.far_y);
    const V in_nx = at(points.in_near_x), in_fx = at(points.in_far_x);
    const V upper = V::fma(nx, s[0], fx * s[1]), lower = V::fma(nx, s[2], fx * s[3]);
    const V dx = V::fma(ny, in_fx * s[1] - in_nx * s[0], fy * (in_fx * s[3] - in_nx * s[2]));
    const V dy = at(points.in_far_y) * lower - at(points.in_near_y) * upper;
    const V a = at(points.masked_attention);
    V::store_pairs(points.xy + 2 * i, a * dx, a * dy);
    V::fma(ny, upper, fy * lower).store(points.weight + i);
  }
}

template <typename C>
void softmax_backward(const C* attention, int64_t count, int64_t n, C* grad) {
  for (int64_t i = 0; i < count; i += n) {
    C mean = 0;
    for (int64_t k = i; k < i + n; ++k) mean += attention[k] * grad[k];
    for (int64_t k = i; k < i + n; ++k) grad[k] = attention[k] * (grad[k] - mean);
  }
}

template <typename C>
void store_points(const MsDeformAttnParams& p, const Tile& tile, int64_t head,
                  const TilePoints<C>& points) {
  const int64_t n = points.per_query, P = p.num_points;
  // Float64 inputs alone are computed in double, and everything is float64 then.
  auto store = [](auto* to, C value) {
    if constexpr (sizeof(*to) <= sizeof(C)) from_compute(value, to);
  };
  for (int i = 0; i < tile.count; ++i) {
    const int64_t at = ((tile.batch * p.queries + tile.query[i]) * p.heads + head) * n;
    with_type(p.points_dtype, p.grad_points, [&](auto* base) {
      if (!base) return;
      auto* to = const_cast<std::remove_const_t<std::remove_pointer_t<decltype(base)>>*>(base);
      for (int64_t k = 0; k < n; ++k) {
        const SizeHW hw = p.query_hw ? SizeHW{1, 1} : p.level_hw[k / P];
        store(to + 2 * (at + k), points.xy[2 * (i * n + k)] * hw.w);
        store(to + 2 * (at + k) + 1, points.xy[2 * (i * n + k) + 1] * hw.h);
      }
    });
    with_type(p.weights_dtype, p.grad_weights, [&](auto* base) {
      if (!base) return;
      auto* to = const_cast<std::remove_const_t<std::remove_pointer_t<decltype(base)>>*>(base);
      for (int64_t k = 0; k < n; ++k) store(to + at + k, points.weight[i * n + k]);
    });
  }
}

template <typename T>
void run_tile(const MsDeformAttnParams& p, const Tile& tile, int64_t head, const Compute<T>* value,
              Compute<T>* grad_value, TilePoints<Compute<T>>& points) {
  using C = Compute<T>;
  constexpr int kLanes = Vec<C>::kLanes;
  const int64_t D = p.channels, n = points.per_query, count = tile.count * n;
  C* dots = p.grad_points || p.grad_weights ? points.dots : nullptr;
  points.template compute<true>(tile, head);
  if (dots) std::memset(dots, 0, 4 * points.size * sizeof(C));
  const T* grad_out =
      static_cast<const T*>(p.grad_out) + tile.batch * p.grad_out_stride_b + head * D;
  for (int i = 0; i < tile.count; ++i) {
    const T* g = grad_out + tile.query[i] * p.grad_out_stride_q;
    int64_t d = 0;
    auto step = [&](auto scatter_some, int width) {
      for (; D - d >= width; d += width)
        scatter_some(g + d, value + d, grad_value ? grad_value + d : nullptr, D,
                     points.pixel + i * n, points.weight + i * n, points.size, n,
                     dots ? dots + 4 * i * n : nullptr);
    };
    step(scatter<8, C, T>, 8 * kLanes);
    step(scatter<4, C, T>, 4 * kLanes);
    step(scatter<1, C, T>, kLanes);
    step(scatter_channel<C, T>, 1);
  }
  if (!dots) return;
  finish_points(points, count);
  if (p.query_hw) softmax_backward(points.attention, count, n, points.weight);
  store_points(p, tile, head, points);
}

template <typename T>
void work(const MsDeformAttnParams& p, TaskQueue& queue) {
  using C = Compute<T>;
  const int64_t D = p.channels, slice = p.tokens * D, tiles = tiles_per_image(p);
  TilePoints<C> points(p);
  Scratch<C> value(slice), grad_value(p.grad_value ? slice : 0);
  Tile tile;
  for (int64_t task; queue.take(&task);) {
    const int64_t batch = task / p.heads, head = task % p.heads;
    copy_head<T>(p, batch, head, value);
    if (p.grad_value) std::memset(grad_value, 0, slice * sizeof(C));
    for (int64_t t = 0; t < tiles; ++t) {
      fill_tile(p, batch, t, &tile);
      run_tile<T>(p, tile, head, value, p.grad_value ? grad_value : static_cast<C*>(nullptr),
                  points);
    }
    if (!p.grad_value) continue;
    T* to = static_cast<T*>(p.grad_value) + (batch * p.tokens * p.heads + head) * D;
    for (int64_t s = 0; s < p.tokens; ++s, to += p.heads * D) {
      for (int64_t d = 0; d < D; ++d) from_compute(grad_value[s * D + d], to + d);
    }
  }
}

}  // namespace

void ms_deform_attn_backward(const MsDeformAttnParams& p) {
  with_type(p.value_dtype, p.value, [&](auto* value) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(value)>>;
    run_workers(
        p.batch * p.heads, p.num_threads,
        [](void* params, TaskQueue& queue) {
          work<T>(*static_cast<const MsDeformAttnParams*>(params), queue);
        },
        const_cast<MsDeformAttnParams*>(&p));
  });
}

}  // namespace vitadapter::VITADAPTER_ISA
