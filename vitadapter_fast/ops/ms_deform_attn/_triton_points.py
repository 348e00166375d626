# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Where a point of a query lies, what it weighs, which pixels it reads: shared by all kernels.

Letters are those of the op; the rows of a program are queries, or pixels, of one head. Image sizes
(``_triton_sizes.py``) are hw0 ... hw15 for the levels and qhw0 ... qhw15 for the query grids.
"""

import triton
import triton.language as tl

from .._triton_sizes import size_of, unpack

SIZES = [f"{kind}{i}" for kind in ("hw", "qhw") for i in range(16)]


# fmt: off
@triton.jit
def find_queries(tile, queries,
                 qhw0, qhw1, qhw2, qhw3, qhw4, qhw5, qhw6, qhw7,
                 qhw8, qhw9, qhw10, qhw11, qhw12, qhw13, qhw14, qhw15,
                 GRIDS: tl.constexpr, ROWS: tl.constexpr, TILE_W: tl.constexpr,
                 COMPUTE: tl.constexpr):
    # fmt: on
    """Return the index and validity of the queries of a tile, and their centers (x, y) in [0, 1].

    A tile is ROWS // TILE_W x TILE_W neighbors on a query grid, which read a quarter of what as
    many in a row read; without grids it is ROWS in a row, and there are no centers.
    """
    slot = tl.arange(0, ROWS)
    if GRIDS == 0:
        is_valid = tile * ROWS + slot < queries
        index = tl.minimum(tile * ROWS + slot, queries - 1)
        center_x = tl.zeros((ROWS,), COMPUTE)
        center_y = center_x
    else:
        h = 0
        w = 0
        first_tile = 0
        first_query = 0
        tiles = 0
        before = 0
        for g in tl.static_range(GRIDS):
            grid_h, grid_w = unpack(size_of(
                g, qhw0, qhw1, qhw2, qhw3, qhw4, qhw5, qhw6, qhw7,
                qhw8, qhw9, qhw10, qhw11, qhw12, qhw13, qhw14, qhw15))  # fmt: skip
            is_here = tile >= tiles
            h = tl.where(is_here, grid_h, h)
            w = tl.where(is_here, grid_w, w)
            first_tile = tl.where(is_here, tiles, first_tile)
            first_query = tl.where(is_here, before, first_query)
            tiles += tl.cdiv(grid_h, ROWS // TILE_W) * tl.cdiv(grid_w, TILE_W)
            before += grid_h * grid_w
        across = tl.cdiv(w, TILE_W)
        row = (tile - first_tile) // across
        x = (tile - first_tile - row * across) * TILE_W + slot % TILE_W
        y = row * (ROWS // TILE_W) + slot // TILE_W
        is_valid = (x < w) & (y < h)
        index = first_query + tl.where(is_valid, y * w + x, 0)
        center_x = rounded_ratio(x.to(COMPUTE) + 0.5, w)
        center_y = rounded_ratio(y.to(COMPUTE) + 0.5, h)
    return index, is_valid, center_x, center_y


@triton.jit
def rounded_ratio(x, size):
    """Return x / size, rounded: a plain division of float32 may be two units off."""
    return x / size if x.dtype == tl.float64 else tl.div_rn(x, size.to(tl.float32))


@triton.jit
def load_row(row, first: tl.constexpr, COUNT: tl.constexpr, PAD: tl.constexpr,
             missing: tl.constexpr, COMPUTE: tl.constexpr):
    """Return COUNT elements of every row from element ``first`` on, [ROWS, PAD]."""
    k = tl.arange(0, PAD)
    if COUNT == PAD:
        tile = tl.load(row + (first + k)[None, :])
    else:
        tile = tl.load(row + (first + k)[None, :], mask=(k < COUNT)[None, :], other=missing)
    return tile.to(COMPUTE)


@triton.jit
def column(tile, k, PAD: tl.constexpr):
    """Return column ``k`` of a tile whose rows lie in a thread each: that costs nothing.

    As integers: the compiler drops the addition of an integer 0, and none of a float 0.
    """
    is_wanted = (tl.arange(0, PAD) == k)[None, :]
    if tile.dtype == tl.float64:
        bits = tl.where(is_wanted, tile.to(tl.int64, bitcast=True), 0)
        result = tl.sum(bits, axis=1).to(tl.float64, bitcast=True)
    else:
        bits = tl.where(is_wanted, tile.to(tl.int32, bitcast=True), 0)
        # By way of int64: that is what the interpreter of Triton 3.1 sums in, and leaves.
        result = tl.sum(bits, axis=1).to(tl.int64).to(tl.int32).to(tl.float32, bitcast=True)
    return result


@triton.jit
def softmax_terms(row, L: tl.constexpr, P: tl.constexpr, P_PAD: tl.constexpr, ROWS: tl.constexpr,
                  COMPUTE: tl.constexpr):
    """Return the largest logit of every row and the inverse of the sum of exponentials."""
    peak = tl.full((ROWS,), -float("inf"), COMPUTE)
    for level in tl.static_range(L):
        logits = load_row(row, level * P, P, P_PAD, -float("inf"), COMPUTE)
        peak = tl.maximum(peak, tl.max(logits, axis=1))
    total = tl.zeros((ROWS,), COMPUTE)
    for level in tl.static_range(L):
        # Loaded once: the compiler sees that it is the same.
        logits = load_row(row, level * P, P, P_PAD, -float("inf"), COMPUTE)
        total += tl.sum(tl.exp(logits - peak[:, None]), axis=1)
    return peak, 1.0 / total


@triton.jit
def find_pixels(x, size):
    """Return the cell of a coordinate between pixels, its fraction, and both pixels, if they are.

    Returns:
        cell: 0 ... size; -1 where it reads nothing: outside, infinite, NaN.
        fraction: Within the cell.
        near, far: Its two pixels, moved into the map.
        has_near, has_far: Whether they were in the map.
    """
    # NaN compares false. -2 lies between two pixels that are both outside.
    x = tl.where((x > -1) & (x < size), x, -2.0)
    low = tl.floor(x)
    first = low.to(tl.int32)
    has_near = first >= 0
    has_far = (first >= -1) & (first < size - 1)
    near = tl.maximum(first, 0)
    far = tl.minimum(tl.maximum(first + 1, 0), size - 1)
    return first + 1, x - low, near, far, has_near, has_far


@triton.jit
def place_points(xy, p, center_x, center_y, h, w, GRIDS: tl.constexpr,
                 P_PAD: tl.constexpr, COMPUTE: tl.constexpr):
    """Return where point ``p`` of every query lies, in pixels of its level."""
    x = column(xy, 2 * p, 2 * P_PAD)
    y = column(xy, 2 * p + 1, 2 * P_PAD)
    if GRIDS > 0:
        x = center_x * w.to(COMPUTE) + (x - 0.5)
        y = center_y * h.to(COMPUTE) + (y - 0.5)
    else:
        x = x * w.to(COMPUTE) - 0.5
        y = y * h.to(COMPUTE) - 0.5
    return x, y


@triton.jit
def load_channels(base, row, STRIDE: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr,
                  COMPUTE: tl.constexpr):
    """Return the channels of one head in the given rows, [ROWS, D_PAD]."""
    d = tl.arange(0, D_PAD)[None, :]
    at = base + d + row[:, None].to(tl.int64) * STRIDE
    tile = tl.load(at) if D == D_PAD else tl.load(at, mask=d < D, other=0.0)
    return tile.to(COMPUTE)
