# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Backward in Triton: gradients of points and weights, and what of each point the value gets."""

import triton
import triton.language as tl

from .._triton import Config, Table
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

# How the gradient of the value is summed -> (bytes of an element, D padded) -> launch parameters;
# (0, 0) for all others. Eight sums a thread next to atomics and in float32 of wide heads, else
# sixteen: nothing spills at D = 32 and 64, and few threads repeat the arithmetic of a point.
_EIGHT = {16: Config(64, 4), 32: Config(32, 4), 64: Config(16, 4), 128: Config(8, 4)}
_SIXTEEN = {16: Config(64, 4), 32: Config(32, 2), 64: Config(16, 2), 128: Config(8, 2)}


def _configs(in_16_bits: dict[int, Config], in_32_bits: dict[int, Config]) -> Table:
    table = {(2, D): config for D, config in in_16_bits.items()}
    return table | {(4, D): config for D, config in in_32_bits.items()} | {(0, 0): Config(8, 4)}


_RECORDS = _configs(_SIXTEEN, _EIGHT | {32: _SIXTEEN[32]})
CONFIGS = {"atomics": _configs(_EIGHT, _EIGHT), "records": _RECORDS, "points": _RECORDS}


@triton.jit
def dot(grad, value, pixel, STRIDE: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr):
    """Return the dot products of gradients with the channels of pixels, [ROWS]."""
    return tl.sum(grad * load_channels(value, pixel, STRIDE, D, D_PAD, grad.dtype), axis=1)


@triton.jit
def with_column(tile, k, column, PAD: tl.constexpr):
    """Return the tile with another column ``k``."""
    return tl.where((tl.arange(0, PAD) == k)[None, :], column[:, None], tile)


@triton.jit
def store_row(to, tile, COUNT: tl.constexpr, PAD: tl.constexpr, mask):
    """Write COUNT elements of every row, from ``to`` on."""
    k = tl.arange(0, PAD)[None, :]
    tile = tile.to(to.dtype.element_ty)
    tl.store(to[:, None] + k, tile, mask=mask[:, None] & (k < COUNT))


@triton.jit
def add_to_pixel(
    total, pixel, weight, grad, is_valid, STRIDE: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr
):
    """Add the weighted gradient to pixels that are in the map."""
    d = tl.arange(0, D_PAD)[None, :]
    at = total + d + pixel[:, None].to(tl.int64) * STRIDE
    # A pixel outside the map has nothing to add.
    mask = (is_valid & (weight != 0))[:, None] & (d < D)
    tl.atomic_add(at, weight[:, None] * grad, mask=mask, sem="relaxed")


@triton.jit
def store_record(records, point, attention, x, y, query, mask):
    """Write attention, position within the cell and the bits of the query's index, 16 bytes."""
    if attention.dtype == tl.float64:
        bits = query.to(tl.int64).to(tl.float64, bitcast=True)
    else:
        bits = query.to(tl.float32, bitcast=True)
    i = tl.arange(0, 4)[None, :]
    position = tl.where(i == 1, x[:, None], y[:, None])
    record = tl.where(i == 0, attention[:, None], tl.where(i == 3, bits[:, None], position))
    tl.store(records + point[:, None] * 4 + i, record, mask=mask[:, None])


# A program is a tile of neighboring queries of one head. For the gradient of the value it adds to
# total (IS_ADDED), or fills bins (IS_BINNED). The loop over points is not unrolled, which makes a
# third of the code. Registers, at most: 224 at D = 32 and 64, without atomics 184.
# fmt: off
@triton.jit(do_not_specialize=["value_rows", "points_rows", "weights_rows", "grad_out_rows",
                               "queries", "tokens", "cells", *SIZES])
def points_backward_kernel(
        value, points, weights, grad_out, grad_points, grad_weights, total,
        cell_of_point, rank_of_point, points_in_cell, records,
        value_rows, points_rows, weights_rows, grad_out_rows, queries, tokens, cells,
        M: tl.constexpr, D: tl.constexpr, L: tl.constexpr, P: tl.constexpr, GRIDS: tl.constexpr,
        VALUE_ROW: tl.constexpr, POINTS_ROW: tl.constexpr, WEIGHTS_ROW: tl.constexpr,
        GRAD_OUT_ROW: tl.constexpr, IS_ADDED: tl.constexpr, IS_BINNED: tl.constexpr,
        NEEDS_POINTS: tl.constexpr, NEEDS_WEIGHTS: tl.constexpr,
        D_PAD: tl.constexpr, P_PAD: tl.constexpr, LP_PAD: tl.constexpr,
        ROWS: tl.constexpr, TILE_W: tl.constexpr,
        hw0=None, hw1=None, hw2=None, hw3=None, hw4=None, hw5=None, hw6=None, hw7=None, hw8=None,
        hw9=None, hw10=None, hw11=None, hw12=None, hw13=None, hw14=None, hw15=None,
        qhw0=None, qhw1=None, qhw2=None, qhw3=None, qhw4=None, qhw5=None, qhw6=None, qhw7=None,
        qhw8=None, qhw9=None, qhw10=None, qhw11=None, qhw12=None, qhw13=None, qhw14=None,
        qhw15=None):
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
    grad_out += image * grad_out_rows * GRAD_OUT_ROW + head * D
    grad = load_channels(grad_out, query, GRAD_OUT_ROW, D, D_PAD, COMPUTE)
    value += image * value_rows * VALUE_ROW + head * D
    if IS_ADDED:
        total += image * tokens * (M * D) + head * D
    # Where the gradients and the records of a query and head begin, in points.
    first_point = ((image * queries + query) * M + head) * (L * P)

    raw = tl.zeros((ROWS, LP_PAD), COMPUTE)
    mean = tl.zeros((ROWS,), COMPUTE)
    start = 0
    first_cell = 0
    for level in tl.static_range(L):
        h, w = unpack(size_of(
            level, hw0, hw1, hw2, hw3, hw4, hw5, hw6, hw7,
            hw8, hw9, hw10, hw11, hw12, hw13, hw14, hw15))  # fmt: skip
        attention = load_row(weights_row, level * P, P, P_PAD, 0.0, COMPUTE)
        if GRIDS > 0:
            attention = tl.exp(attention - peak[:, None]) * share[:, None]
        # Not by load_row: where a call loads what becomes an address, compilers take what it reads
        # for written, and copy it.
        k = tl.arange(0, 2 * P_PAD)[None, :]
        xy = tl.load(points_row + (2 * level * P + k), mask=k < 2 * P, other=0.0).to(COMPUTE)
        grad_xy = tl.zeros((ROWS, 2 * P_PAD), COMPUTE)
        for p in range(P):
            x, y = place_points(xy, p, center_x, center_y, h, w, GRIDS, P_PAD, COMPUTE)
            x_cell, x_far, left, right, has_left, has_right = find_pixels(x, w)
            y_cell, y_far, upper, lower, has_upper, has_lower = find_pixels(y, h)
            weight = column(attention, p, P_PAD)
            if IS_BINNED:
                reads = (x_cell >= 0) & (y_cell >= 0)
                cell = tl.where(reads, first_cell + y_cell * (w + 1) + x_cell, -1)
                point = first_point + (level * P + p)
                tl.store(cell_of_point + point, cell, mask=is_valid)
                counter = points_in_cell + (image * M + head) * cells + cell
                keeps = reads & is_valid
                rank = tl.atomic_add(counter, 1, mask=keeps, sem="relaxed")
                tl.store(rank_of_point + point, rank, mask=keeps)
                store_record(records, point, weight, x_far, y_far, query, keeps)
            upper_weight = tl.where(has_upper, 1.0 - y_far, 0.0)
            lower_weight = tl.where(has_lower, y_far, 0.0)
            left_weight = tl.where(has_left, 1.0 - x_far, 0.0)
            right_weight = tl.where(has_right, x_far, 0.0)
            upper_left = start + upper * w + left
            upper_right = start + upper * w + right
            lower_left = start + lower * w + left
            lower_right = start + lower * w + right
            dot_ul = dot(grad, value, upper_left, VALUE_ROW, D, D_PAD)
            dot_ur = dot(grad, value, upper_right, VALUE_ROW, D, D_PAD)
            dot_ll = dot(grad, value, lower_left, VALUE_ROW, D, D_PAD)
            dot_lr = dot(grad, value, lower_right, VALUE_ROW, D, D_PAD)
            if IS_ADDED:
                u, v = weight * upper_weight, weight * lower_weight
                add_to_pixel(total, upper_left, u * left_weight, grad, is_valid, M * D, D, D_PAD)
                add_to_pixel(total, upper_right, u * right_weight, grad, is_valid, M * D, D, D_PAD)
                add_to_pixel(total, lower_left, v * left_weight, grad, is_valid, M * D, D, D_PAD)
                add_to_pixel(total, lower_right, v * right_weight, grad, is_valid, M * D, D, D_PAD)
            above = left_weight * dot_ul + right_weight * dot_ur
            below = left_weight * dot_ll + right_weight * dot_lr
            gain = upper_weight * above + lower_weight * below
            mean += weight * gain
            raw = with_column(raw, level * P + p, gain, LP_PAD)
            if NEEDS_POINTS:
                before = upper_weight * dot_ul + lower_weight * dot_ll
                after = upper_weight * dot_ur + lower_weight * dot_lr
                grad_x = tl.where(has_right, after, 0.0) - tl.where(has_left, before, 0.0)
                grad_y = tl.where(has_lower, below, 0.0) - tl.where(has_upper, above, 0.0)
                grad_x *= weight
                grad_y *= weight
                if GRIDS == 0:
                    grad_x *= w.to(COMPUTE)
                    grad_y *= h.to(COMPUTE)
                grad_xy = with_column(grad_xy, 2 * p, grad_x, 2 * P_PAD)
                grad_xy = with_column(grad_xy, 2 * p + 1, grad_y, 2 * P_PAD)
        if NEEDS_POINTS:
            to = grad_points + (first_point + level * P) * 2
            store_row(to, grad_xy, 2 * P, 2 * P_PAD, is_valid)
        start += h * w
        first_cell += (h + 1) * (w + 1)
    if NEEDS_WEIGHTS:
        if GRIDS > 0:
            attention = load_row(weights_row, 0, L * P, LP_PAD, -float("inf"), COMPUTE)
            attention = tl.exp(attention - peak[:, None]) * share[:, None]
            raw = attention * (raw - mean[:, None])
        store_row(grad_weights + first_point, raw, L * P, LP_PAD, is_valid)
