// SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
// SPDX-License-Identifier: Apache-2.0

// Which queries are worked on together. Neighbors sample overlapping pixels, which then stay in L1.
#pragma once

#include "ms_deform_attn/params.h"

namespace vitadapter::VITADAPTER_ISA {

constexpr int kTileSide = 8;
constexpr int kTileQueries = kTileSide * kTileSide;

// A square of one query grid, or a run of as many queries where the grid is unknown.
struct Tile {
  int64_t batch;
  int count;
  int64_t query[kTileQueries];
  // Center of the query as a fraction of the map, where query_hw is given.
  double center_x[kTileQueries], center_y[kTileQueries];
};

inline int64_t tiles_in(SizeHW grid) {
  return static_cast<int64_t>((grid.h + kTileSide - 1) / kTileSide) *
         ((grid.w + kTileSide - 1) / kTileSide);
}

inline int64_t tiles_per_image(const MsDeformAttnParams& p) {
  if (!p.query_hw) return (p.queries + kTileQueries - 1) / kTileQueries;
  int64_t count = 0;
  for (int64_t g = 0; g < p.query_grids; ++g) count += tiles_in(p.query_hw[g]);
  return count;
}

inline void fill_tile(const MsDeformAttnParams& p, int64_t batch, int64_t index, Tile* tile) {
  tile->batch = batch;
  tile->count = 0;
  if (!p.query_hw) {
    for (int64_t q = index * kTileQueries; q < p.queries && tile->count < kTileQueries; ++q)
      tile->query[tile->count++] = q;
    return;
  }
  int64_t first = 0;
  const SizeHW* grid = p.query_hw;
  for (; index >= tiles_in(*grid); ++grid) {
    index -= tiles_in(*grid);
    first += static_cast<int64_t>(grid->h) * grid->w;
  }
  const int across = (grid->w + kTileSide - 1) / kTileSide;
  const int64_t top = index / across * kTileSide, left = index % across * kTileSide;
  for (int64_t y = top; y < top + kTileSide && y < grid->h; ++y) {
    for (int64_t x = left; x < left + kTileSide && x < grid->w; ++x) {
      tile->query[tile->count] = first + y * grid->w + x;
      tile->center_x[tile->count] = (x + 0.5) / grid->w;
      tile->center_y[tile->count++] = (y + 0.5) / grid->h;
    }
  }
}

}  // namespace vitadapter::VITADAPTER_ISA
