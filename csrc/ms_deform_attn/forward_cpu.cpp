// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// Forward on the CPU. A task is a run of query tiles of one head of one image; its worker holds a
// dense copy of that head's value, and the pixels that neighboring queries read stay in L1.
#include "common/workers.h"
#include "ms_deform_attn/points_cpu.h"

namespace vitadapter::VITADAPTER_ISA {
namespace {

// Adds the samples of one query: kVecs vectors of channels stay in registers over all points.
template <int kVecs, typename C, typename T>
inline void gather(const C* value, int64_t D, const int32_t* pixel, const C* weight, int64_t size,
                   int64_t count, T* out) {
  using V = Vec<C>;
  V sum[kVecs];
  for (V& s : sum) s = V::set(0);
  for (int64_t i = 0; i < count; ++i) {
    for (int corner = 0; corner < 4; ++corner) {
      const V w = V::set(weight[corner * size + i]);
      const C* from = value + pixel[corner * size + i] * D;
      for (int k = 0; k < kVecs; ++k) sum[k] = V::fma(w, V::load(from + k * V::kLanes), sum[k]);
    }
  }
  for (int k = 0; k < kVecs; ++k) sum[k].store(out + k * V::kLanes);
}

template <typename C, typename T>
inline void gather_channel(const C* value, int64_t D, const int32_t* pixel, const C* weight,
                           int64_t size, int64_t count, T* out) {
  C sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    for (int corner = 0; corner < 4; ++corner)
      sum += weight[corner * size + i] * value[pixel[corner * size + i] * D];
  }
  from_compute(sum, out);
}

template <typename T>
void run_tile(const MsDeformAttnParams& p, const Tile& tile, int64_t head, const Compute<T>* value,
              TilePoints<Compute<T>>& points) {
  constexpr int kLanes = Vec<Compute<T>>::kLanes;
  const int64_t D = p.channels, n = points.per_query;
  points.template compute<false>(tile, head);
  T* out = static_cast<T*>(p.out) + (tile.batch * p.queries * p.heads + head) * D;
  for (int i = 0; i < tile.count; ++i) {
    T* to = out + tile.query[i] * p.heads * D;
    int64_t d = 0;
    auto step = [&](auto gather_some, int width) {
      for (; D - d >= width; d += width)
        gather_some(value + d, D, points.pixel + i * n, points.weight + i * n, points.size, n,
                    to + d);
    };
    step(gather<8, Compute<T>, T>, 8 * kLanes);
    step(gather<4, Compute<T>, T>, 4 * kLanes);
    step(gather<1, Compute<T>, T>, kLanes);
    step(gather_channel<Compute<T>, T>, 1);
  }
}

struct Split {
  int64_t tiles, parts;  // per image and head

  explicit Split(const MsDeformAttnParams& p) : tiles(tiles_per_image(p)), parts(1) {
    // Every part copies the head again, so heads are split only where they would leave threads
    // idle.
    const int64_t heads = p.batch * p.heads;
    if (heads > 0 && heads % p.num_threads != 0 && heads < 4 * p.num_threads)
      parts = (4 * p.num_threads + heads - 1) / heads;
    if (parts > tiles) parts = tiles > 0 ? tiles : 1;
  }
};

template <typename T>
void work(const MsDeformAttnParams& p, TaskQueue& queue) {
  const Split split(p);
  TilePoints<Compute<T>> points(p);
  Scratch<Compute<T>> value(p.tokens * p.channels);
  Tile tile;
  int64_t copied = -1;
  for (int64_t task; queue.take(&task);) {
    const int64_t slice = task / split.parts, part = task % split.parts;
    const int64_t batch = slice / p.heads, head = slice % p.heads;
    if (copied != slice) copy_head<T>(p, batch, head, value);
    copied = slice;
    const int64_t end = (part + 1) * split.tiles / split.parts;
    for (int64_t t = part * split.tiles / split.parts; t < end; ++t) {
      fill_tile(p, batch, t, &tile);
      run_tile<T>(p, tile, head, value, points);
    }
  }
}

}  // namespace

void ms_deform_attn_forward(const MsDeformAttnParams& p) {
  with_type(p.value_dtype, p.value, [&](auto* value) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(value)>>;
    run_workers(
        p.batch * p.heads * Split(p).parts, p.num_threads,
        [](void* params, TaskQueue& queue) {
          work<T>(*static_cast<const MsDeformAttnParams*>(params), queue);
        },
        const_cast<MsDeformAttnParams*>(&p));
  });
}

}  // namespace vitadapter::VITADAPTER_ISA
