# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Records of points in, the gradient of the value out, in Triton: placed by cell, then gathered."""

import triton
import triton.language as tl

from .._triton import Config
from .._triton_sizes import size_of, unpack
from ._triton_points import SIZES, load_channels

# (bytes of an element, D padded) -> launch parameters; (0, 0) for all others. Few pixels and warps:
# a program takes as long as its pixel with the most records.
_CONFIGS = {16: Config(16, 1), 32: Config(8, 1), 64: Config(8, 1), 128: Config(8, 2)}
CONFIGS = {(0, 0): Config(8, 4)} | {(size, D): _CONFIGS[D] for size in (2, 4) for D in _CONFIGS}
PLACE_CONFIG = Config(256, 4)


# A program moves ROWS records to their places among those of their cells. Registers, at most: 32.
@triton.jit(do_not_specialize=["count", "points_per_image", "cells"])
def place_kernel(
    cell_of_point,
    rank_of_point,
    points_in_cell,
    cell_end,
    records,
    sorted_records,
    count,
    points_per_image,
    cells,
    M: tl.constexpr,
    PER_QUERY: tl.constexpr,
    ROWS: tl.constexpr,
):
    point = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    cell = tl.load(cell_of_point + point, mask=point < count, other=-1)
    is_kept = cell >= 0
    image = point // points_per_image
    head = point // PER_QUERY % M
    counter = (image * M + head) * cells + cell
    first = tl.load(cell_end + counter, mask=is_kept, other=0)
    first -= tl.load(points_in_cell + counter, mask=is_kept, other=0)
    to = first + tl.load(rank_of_point + point, mask=is_kept, other=0)
    i = tl.arange(0, 4)[None, :]
    record = tl.load(records + point[:, None] * 4 + i, mask=is_kept[:, None], other=0.0)
    at = sorted_records + to[:, None].to(tl.int64) * 4 + i
    tl.store(at, record, mask=is_kept[:, None])


@triton.jit
def query_of(bits):
    """Return the query whose index a record holds as bits."""
    if bits.dtype == tl.float64:
        query = bits.to(tl.int64, bitcast=True).to(tl.int32)
    else:
        query = bits.to(tl.int32, bitcast=True)
    return query


# A program is ROWS pixels of one head in a row. The records of the cells to the left and right of a
# pixel lie side by side, so each pixel goes through two runs of records: above and below it.
# Registers, at most: 64 at D = 32 and 64.
# fmt: off
@triton.jit(do_not_specialize=["grad_out_rows", "tokens", "cells", *SIZES])
def gather_kernel(
        points_in_cell, cell_end, sorted_records, grad_out, grad_value,
        grad_out_rows, tokens, cells,
        M: tl.constexpr, D: tl.constexpr, L: tl.constexpr, GRAD_OUT_ROW: tl.constexpr,
        D_PAD: tl.constexpr, ROWS: tl.constexpr,
        hw0=None, hw1=None, hw2=None, hw3=None, hw4=None, hw5=None, hw6=None, hw7=None, hw8=None,
        hw9=None, hw10=None, hw11=None, hw12=None, hw13=None, hw14=None, hw15=None):
    # fmt: on
    COMPUTE: tl.constexpr = sorted_records.dtype.element_ty
    head = tl.program_id(0) % M
    image = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) // M * ROWS + tl.arange(0, ROWS)
    is_valid = pixel < tokens
    # Where the level of the pixel starts, how wide it is, and its first cell.
    start = tl.zeros((ROWS,), tl.int32)
    first_cell = start
    width = start + 1
    before = 0
    cells_before = 0
    for level in tl.static_range(L):
        h, w = unpack(size_of(
            level, hw0, hw1, hw2, hw3, hw4, hw5, hw6, hw7,
            hw8, hw9, hw10, hw11, hw12, hw13, hw14, hw15))  # fmt: skip
        is_here = pixel >= before
        start = tl.where(is_here, before, start)
        first_cell = tl.where(is_here, cells_before, first_cell)
        width = tl.where(is_here, w, width)
        before += h * w
        cells_before += (h + 1) * (w + 1)
    y = (pixel - start) // width
    x = (pixel - start) - y * width
    upper_left = (image * M + head) * cells + (first_cell + y * (width + 1) + x)
    grad_out += image * grad_out_rows * GRAD_OUT_ROW + head * D
    total = tl.zeros((ROWS, D_PAD), COMPUTE)
    for is_below in tl.static_range(2):
        left = upper_left + is_below * (width + 1)
        left_end = tl.load(cell_end + left, mask=is_valid, other=0)
        at = left_end - tl.load(points_in_cell + left, mask=is_valid, other=0)
        right_end = tl.load(cell_end + left + 1, mask=is_valid, other=0)
        turns = tl.max(right_end - at, axis=0)
        while turns > 0:
            is_record = at < right_end
            record = sorted_records + at.to(tl.int64) * 4
            weight = tl.load(record, mask=is_record, other=0.0)
            x_far = tl.load(record + 1, mask=is_record, other=0.0)
            y_far = tl.load(record + 2, mask=is_record, other=0.0)
            query = query_of(tl.load(record + 3, mask=is_record, other=0.0))
            # The pixel is the far one of the cells to its left and above.
            weight *= tl.where(at < left_end, x_far, 1.0 - x_far)
            weight *= 1.0 - y_far if is_below else y_far
            grad = load_channels(grad_out, query, GRAD_OUT_ROW, D, D_PAD, COMPUTE)
            total += weight[:, None] * grad
            at += 1
            turns -= 1
    d = tl.arange(0, D_PAD)[None, :]
    row = (image * tokens + pixel)[:, None]
    to = grad_value + (head * D + d) + row * (M * D)
    tl.store(to, total.to(grad_value.dtype.element_ty), mask=is_valid[:, None] & (d < D))
