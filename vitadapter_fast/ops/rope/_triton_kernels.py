# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Queries, keys and values in, the first two rotated by their positions out."""

import triton
import triton.language as tl

from .._triton import Config

# Tokens of a program: with 32 pairs of a head, 1024 of them on 128 threads, 16 bytes of 16 bits.
CONFIG = Config(32, 4)


# A program is ROWS tokens of one head of queries, keys or values. Of the first ROTATED heads the
# pairs d and d + HALF rotate, by their row for d < HALF / 2, else by their column; where IS_COPIED,
# all else is copied.
# fmt: off
@triton.jit(do_not_specialize=["qkv_rows", "out_rows", "tokens", "h", "w"])
def rope_kernel(qkv, tables, out, qkv_rows, out_rows, tokens, h, w,
                QKV_ROW: tl.constexpr, OUT_ROW: tl.constexpr, ROTATED: tl.constexpr,
                HALF: tl.constexpr, HALF_PAD: tl.constexpr, SIGN: tl.constexpr,
                IS_COPIED: tl.constexpr, ROWS: tl.constexpr):
    # fmt: on
    COMPUTE: tl.constexpr = tables.dtype.element_ty
    QUARTER: tl.constexpr = HALF // 2
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    head = tl.program_id(1)
    image = tl.program_id(2).to(tl.int64)
    d = tl.arange(0, HALF_PAD)[None, :]
    is_pair = (token < tokens)[:, None] & (d < HALF)
    at = head * 2 * HALF + d
    from_row = qkv + (image * qkv_rows + token)[:, None] * QKV_ROW + at
    to_row = out + (image * out_rows + token)[:, None] * OUT_ROW + at
    y = token // w
    # Triton's interpreter cannot combine a scalar condition with a mask.
    is_rotated = is_pair & (y < tl.where(head < ROTATED, h, 0))[:, None]

    first = tl.load(from_row, mask=is_pair, other=0.0).to(COMPUTE)
    second = tl.load(from_row + HALF, mask=is_pair, other=0.0).to(COMPUTE)
    position = tl.where(d < QUARTER, y[:, None], (h + token - y * w)[:, None])
    table = tables + position * HALF + tl.where(d < QUARTER, d, d - QUARTER)
    cos = tl.load(table, mask=is_rotated, other=1.0)
    sin = SIGN * tl.load(table + QUARTER, mask=is_rotated, other=0.0)
    is_stored = is_pair if IS_COPIED else is_rotated
    kind = out.dtype.element_ty
    tl.store(to_row, (first * cos - second * sin).to(kind), mask=is_stored)
    tl.store(to_row + HALF, (second * cos + first * sin).to(kind), mask=is_stored)
