# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Forward in Triton: maps, points and weights in, attended features out, in one launch."""

import triton
import triton.language as tl

from .._triton import Config
from .._triton_sizes import size_of, unpack
from ._triton_points import (
    SIZES,
    column,
    find_pixels,
    find_queries,
    load_channels,
    load_row,
    place_points,
    softmax_terms,
)

# Points of a query and head up to which the loop over them is unrolled: 45 take 76 s to compile.
UNROLLED = tl.constexpr(16)

# (bytes of an element, D padded) -> launch parameters; (0, 0) for all others. By instruction count:
# with two warps and 32 sums a thread the arithmetic of a point is shared by few threads and nothing
# spills. Instructions for a query and head at D = 32, L = 1, P = 4 in bf16: 72 on sm_80 and sm_90.
# Heads between powers of two cost as the next one, with masked lanes and no reads for them. On
# sm_90, without spills: D = 24 76 with one level and 205 with three, D = 40 150 with one.
CONFIGS = {
    (2, 16): Config(64, 2),
    (2, 32): Config(64, 2),
    (2, 64): Config(32, 2),
    (2, 128): Config(16, 2),
    (4, 16): Config(64, 2),
    (4, 32): Config(64, 4),
    (4, 64): Config(32, 2),
    (4, 128): Config(16, 2),
    (0, 0): Config(16, 4),
}


@triton.jit
def add_point(total, value, xy, attention, p, center_x, center_y, start, h, w,
              GRIDS: tl.constexpr, VALUE_ROW: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr,
              P_PAD: tl.constexpr, COMPUTE: tl.constexpr):  # fmt: skip
    """Return the total with the four pixels about point ``p`` of every query."""
    x, y = place_points(xy, p, center_x, center_y, h, w, GRIDS, P_PAD, COMPUTE)
    _, x_far, left, right, has_left, has_right = find_pixels(x, w)
    _, y_far, upper, lower, has_upper, has_lower = find_pixels(y, h)
    weight = column(attention, p, P_PAD)
    upper_weight = tl.where(has_upper, 1.0 - y_far, 0.0) * weight
    lower_weight = tl.where(has_lower, y_far, 0.0) * weight
    left_weight = tl.where(has_left, 1.0 - x_far, 0.0)
    right_weight = tl.where(has_right, x_far, 0.0)
    upper = start + upper * w
    lower = start + lower * w
    pixel = load_channels(value, upper + left, VALUE_ROW, D, D_PAD, COMPUTE)
    total += (upper_weight * left_weight)[:, None] * pixel
    pixel = load_channels(value, upper + right, VALUE_ROW, D, D_PAD, COMPUTE)
    total += (upper_weight * right_weight)[:, None] * pixel
    pixel = load_channels(value, lower + left, VALUE_ROW, D, D_PAD, COMPUTE)
    total += (lower_weight * left_weight)[:, None] * pixel
    pixel = load_channels(value, lower + right, VALUE_ROW, D, D_PAD, COMPUTE)
    total += (lower_weight * right_weight)[:, None] * pixel
    return total


# A program is a tile of neighboring queries of one head; heads of a tile run next to each other.
# Reads are unconditional: what lies outside is read at the border, with weight zero. Registers, at
# most: 208 at D = 32 and 64.
# fmt: off
@triton.jit(do_not_specialize=["value_rows", "points_rows", "weights_rows", "queries", *SIZES])
def forward_kernel(value, points, weights, out, value_rows, points_rows, weights_rows, queries,
                   M: tl.constexpr, D: tl.constexpr, L: tl.constexpr, P: tl.constexpr,
                   GRIDS: tl.constexpr,
                   VALUE_ROW: tl.constexpr, POINTS_ROW: tl.constexpr, WEIGHTS_ROW: tl.constexpr,
                   D_PAD: tl.constexpr, P_PAD: tl.constexpr,
                   ROWS: tl.constexpr, TILE_W: tl.constexpr,
                   hw0=None, hw1=None, hw2=None, hw3=None, hw4=None, hw5=None, hw6=None, hw7=None,
                   hw8=None, hw9=None, hw10=None, hw11=None, hw12=None, hw13=None, hw14=None,
                   hw15=None,
                   qhw0=None, qhw1=None, qhw2=None, qhw3=None, qhw4=None, qhw5=None, qhw6=None,
                   qhw7=None, qhw8=None, qhw9=None, qhw10=None, qhw11=None, qhw12=None, qhw13=None,
                   qhw14=None, qhw15=None):
    # fmt: on
    COMPUTE: tl.constexpr = tl.float64 if value.dtype.element_ty == tl.float64 else tl.float32
    head = tl.program_id(0) % M
    image = tl.program_id(1).to(tl.int64)
    query, is_valid, center_x, center_y = find_queries(
        tl.program_id(0) // M, queries,
        qhw0, qhw1, qhw2, qhw3, qhw4, qhw5, qhw6, qhw7,
        qhw8, qhw9, qhw10, qhw11, qhw12, qhw13, qhw14, qhw15,
        GRIDS, ROWS, TILE_W, COMPUTE)  # fmt: skip
    wide = query.to(tl.int64)[:, None]
    weights += image * weights_rows * WEIGHTS_ROW + head * (L * P)
    weights_row = weights + wide * WEIGHTS_ROW
    points += image * points_rows * POINTS_ROW + head * (L * P * 2)
    points_row = points + wide * POINTS_ROW
    if GRIDS > 0:
        peak, share = softmax_terms(weights_row, L, P, P_PAD, ROWS, COMPUTE)
    value += image * value_rows * VALUE_ROW + head * D
    total = tl.zeros((ROWS, D_PAD), COMPUTE)
    start = 0
    for level in tl.static_range(L):
        h, w = unpack(size_of(
            level, hw0, hw1, hw2, hw3, hw4, hw5, hw6, hw7,
            hw8, hw9, hw10, hw11, hw12, hw13, hw14, hw15))  # fmt: skip
        attention = load_row(weights_row, level * P, P, P_PAD, 0.0, COMPUTE)
        if GRIDS > 0:
            attention = tl.exp(attention - peak[:, None]) * share[:, None]
        xy = load_row(points_row, 2 * level * P, 2 * P, 2 * P_PAD, 0.0, COMPUTE)
        if L * P <= UNROLLED:
            for p in tl.static_range(P):
                total = add_point(
                    total, value, xy, attention, p, center_x, center_y, start, h, w,
                    GRIDS, VALUE_ROW, D, D_PAD, P_PAD, COMPUTE)  # fmt: skip
        else:
            for p in range(P):
                total = add_point(
                    total, value, xy, attention, p, center_x, center_y, start, h, w,
                    GRIDS, VALUE_ROW, D, D_PAD, P_PAD, COMPUTE)  # fmt: skip
        start += h * w
    d = tl.arange(0, D_PAD)[None, :]
    row = (image * queries + query)[:, None]
    to = out + (head * D + d) + row * (M * D)
    tl.store(to, total.to(out.dtype.element_ty), mask=is_valid[:, None] & (d < D))
