# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Tokens of all grids in, convolved tokens or gradients out, in one launch each."""

import triton
import triton.language as tl

from .._triton import Config
from .._triton_sizes import size_of, unpack_wide

SIZES = [f"hw{i}" for i in range(16)]

# Channels of a program -> launch parameters (rows: columns of the grid); 0 for all others. 1024
# elements on 128 threads are 16 bytes of 16-bit tokens for each.
CONFIGS = {64: Config(16, 4), 32: Config(32, 4), 0: Config(16, 4)}
STRIP = 8  # rows of the grid that a program runs down
WEIGHT_STRIP = 16


# Returns the first row and column of a program's tile, and its grid.
# fmt: off
@triton.jit
def find_tile(tile, hw0, hw1, hw2, hw3, hw4, hw5, hw6, hw7,
              hw8, hw9, hw10, hw11, hw12, hw13, hw14, hw15,
              GRIDS: tl.constexpr, STRIP: tl.constexpr, ROWS: tl.constexpr):
    # fmt: on
    h, w = unpack_wide(hw0.to(tl.int64))
    first_token = h * 0
    first_tile = h * 0
    next_token = h * 0
    next_tile = h * 0
    for g in tl.static_range(GRIDS):
        grid_h, grid_w = unpack_wide(size_of(
            g, hw0, hw1, hw2, hw3, hw4, hw5, hw6, hw7,
            hw8, hw9, hw10, hw11, hw12, hw13, hw14, hw15))  # fmt: skip
        is_later = tile >= next_tile
        h = tl.where(is_later, grid_h, h)
        w = tl.where(is_later, grid_w, w)
        first_token = tl.where(is_later, next_token, first_token)
        first_tile = tl.where(is_later, next_tile, first_tile)
        next_token += grid_h * grid_w
        next_tile += ((grid_h + STRIP - 1) // STRIP) * ((grid_w + ROWS - 1) // ROWS)
    across = (w + ROWS - 1) // ROWS
    local = tile - first_tile
    return (local // across) * STRIP, (local % across) * ROWS, h, w, first_token


# The upper tail of the normal distribution at |x|, and the bell exp(-x^2 / 2) in it: see
# csrc/dwconv_gelu/gelu.h, whose polynomial this is.
@triton.jit
def find_tail(bounded):
    a = tl.abs(bounded)
    bell = tl.exp2(-0.721347520 * (a * a))
    u = a / (a + 4.5)
    total = u * -0.107246168 + 0.389563298
    total = u * total - 0.340382901
    total = u * total - 0.78943399
    total = u * total + 2.66290661
    total = u * total - 3.78762849
    total = u * total + 3.26723605
    total = u * total - 1.79523992
    return bell, bell * (u * total + 0.5)


# Comparisons, not minima: those drop NaN.
@triton.jit
def bound(x):
    return tl.where(x > 9.0, 9.0, tl.where(x < -9.0, -9.0, x))


@triton.jit
def gelu(x):
    if x.dtype == tl.float64:
        return x * (0.5 + 0.5 * tl.erf(x * 0.7071067811865476))
    bounded = bound(x)
    bell, tail = find_tail(bounded)
    return tl.where(x < 0.0, 0.0, x) - tl.abs(bounded) * tail


@triton.jit
def gelu_slope(x):
    if x.dtype == tl.float64:
        bell = tl.exp(-0.5 * x * x)
        return 0.5 + 0.5 * tl.erf(x * 0.7071067811865476) + x * bell * 0.3989422804014327
    bounded = bound(x)
    bell, tail = find_tail(bounded)
    return tl.where(x > 0.0, 1.0 - tail, tail) + bounded * 0.398942280 * bell


@triton.jit
def load_tap(weight, channel, is_channel, t: tl.constexpr, COMPUTE: tl.constexpr):
    return tl.load(weight + channel * 9 + t, mask=is_channel, other=0.0).to(COMPUTE)[None, :]


@triton.jit
def load_pixels(tokens, token, channel, mask, ROW: tl.constexpr, COMPUTE: tl.constexpr):
    return tl.load(tokens + token * ROW + channel, mask=mask, other=0.0).to(COMPUTE)


# A program is some channels of ROWS columns and runs down STRIP rows: a row is added to the three
# sums it belongs to, with all taps in registers. THEN: 0 GELU; 1 the gradient of what goes into it;
# 2, with the kernel turned by half a turn, the gradient of the tokens.
# fmt: off
@triton.jit(do_not_specialize=["tokens_rows", "grad_out_rows", "num_tokens", *SIZES])
def convolve_kernel(tokens, weight, bias, grad_out, out, tokens_rows, grad_out_rows, num_tokens,
                    C: tl.constexpr, GRIDS: tl.constexpr, THEN: tl.constexpr,
                    HAS_BIAS: tl.constexpr, TOKENS_ROW: tl.constexpr, GRAD_OUT_ROW: tl.constexpr,
                    STRIP: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
                    hw0=None, hw1=None, hw2=None, hw3=None, hw4=None, hw5=None, hw6=None, hw7=None,
                    hw8=None, hw9=None, hw10=None, hw11=None, hw12=None, hw13=None, hw14=None,
                    hw15=None):
    # fmt: on
    COMPUTE: tl.constexpr = tl.float64 if tokens.dtype.element_ty == tl.float64 else tl.float32
    GROUPS: tl.constexpr = (C + CHANNELS - 1) // CHANNELS
    top, left, h, w, first_token = find_tile(
        tl.program_id(0) // GROUPS, hw0, hw1, hw2, hw3, hw4, hw5, hw6, hw7,
        hw8, hw9, hw10, hw11, hw12, hw13, hw14, hw15, GRIDS, STRIP, ROWS)  # fmt: skip
    image = tl.program_id(1).to(tl.int64)
    channel = tl.program_id(0) % GROUPS * CHANNELS + tl.arange(0, CHANNELS)
    is_channel = channel < C
    x = (left + tl.arange(0, ROWS))[:, None]
    is_channel_row = is_channel[None, :]

    FIRST: tl.constexpr = 8 if THEN == 2 else 0
    STEP: tl.constexpr = -1 if THEN == 2 else 1
    tap0 = load_tap(weight, channel, is_channel, FIRST, COMPUTE)
    tap1 = load_tap(weight, channel, is_channel, FIRST + STEP, COMPUTE)
    tap2 = load_tap(weight, channel, is_channel, FIRST + 2 * STEP, COMPUTE)
    tap3 = load_tap(weight, channel, is_channel, FIRST + 3 * STEP, COMPUTE)
    tap4 = load_tap(weight, channel, is_channel, FIRST + 4 * STEP, COMPUTE)
    tap5 = load_tap(weight, channel, is_channel, FIRST + 5 * STEP, COMPUTE)
    tap6 = load_tap(weight, channel, is_channel, FIRST + 6 * STEP, COMPUTE)
    tap7 = load_tap(weight, channel, is_channel, FIRST + 7 * STEP, COMPUTE)
    tap8 = load_tap(weight, channel, is_channel, FIRST + 8 * STEP, COMPUTE)
    start = tl.zeros((ROWS, CHANNELS), COMPUTE)
    if HAS_BIAS:
        start += tl.load(bias + channel, mask=is_channel, other=0.0).to(COMPUTE)[None, :]
    above = start
    here = start
    for i in range(0, STRIP + 2):
        y = top + i - 1
        token = first_token + y * w + x
        # Triton's interpreter cannot combine a scalar condition with a mask.
        width = tl.where((y >= 0) & (y < h), w, 0)
        is_row = is_channel_row & (x < width)
        at = image * tokens_rows + token
        before = load_pixels(
            tokens, at - 1, channel, is_row & (x > 0), TOKENS_ROW, COMPUTE)  # fmt: skip
        pixel = load_pixels(tokens, at, channel, is_row, TOKENS_ROW, COMPUTE)
        after = load_pixels(
            tokens, at + 1, channel, is_row & (x + 1 < w), TOKENS_ROW, COMPUTE)  # fmt: skip
        above += before * tap6 + pixel * tap7 + after * tap8
        here += before * tap3 + pixel * tap4 + after * tap5
        below = start + before * tap0 + pixel * tap1 + after * tap2
        # The sums of the row before are complete.
        token -= w
        is_row = is_channel_row & (x < tl.where((y > top) & (y <= h), w, 0))
        if THEN == 0:
            above = gelu(above)
        if THEN == 1:
            at = image * grad_out_rows + token
            above = gelu_slope(above) * load_pixels(
                grad_out, at, channel, is_row, GRAD_OUT_ROW, COMPUTE)  # fmt: skip
        to = out + (image * num_tokens + token) * C + channel
        tl.store(to, above.to(out.dtype.element_ty), mask=is_row)
        above = here
        here = below


@triton.jit
def store_sum(partial, channel, is_channel, t: tl.constexpr, C: tl.constexpr, products):
    tl.store(partial + t * C + channel, tl.sum(products, 0), mask=is_channel)


# One partial sum of the weight's and the bias's gradient for each tile. Every pixel meets the nine
# neighbors whose taps it is multiplied by. grad_sum is dense.
# fmt: off
@triton.jit(do_not_specialize=["tokens_rows", "num_tokens", *SIZES])
def weight_gradient_kernel(tokens, grad_sum, partial, tokens_rows, num_tokens,
                           C: tl.constexpr, GRIDS: tl.constexpr, TOKENS_ROW: tl.constexpr,
                           STRIP: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
                           hw0=None, hw1=None, hw2=None, hw3=None, hw4=None, hw5=None, hw6=None,
                           hw7=None, hw8=None, hw9=None, hw10=None, hw11=None, hw12=None, hw13=None,
                           hw14=None, hw15=None):
    # fmt: on
    COMPUTE: tl.constexpr = partial.dtype.element_ty
    GROUPS: tl.constexpr = (C + CHANNELS - 1) // CHANNELS
    tile = tl.program_id(0) // GROUPS
    top, left, h, w, first_token = find_tile(
        tile, hw0, hw1, hw2, hw3, hw4, hw5, hw6, hw7,
        hw8, hw9, hw10, hw11, hw12, hw13, hw14, hw15, GRIDS, STRIP, ROWS)  # fmt: skip
    image = tl.program_id(1).to(tl.int64)
    channel = tl.program_id(0) % GROUPS * CHANNELS + tl.arange(0, CHANNELS)
    is_channel = channel < C
    x = (left + tl.arange(0, ROWS))[:, None]
    is_channel_row = is_channel[None, :]
    bottom = tl.minimum(top + STRIP, h)

    above = tl.zeros((ROWS, CHANNELS), COMPUTE)
    here = tl.zeros((ROWS, CHANNELS), COMPUTE)
    sum0 = tl.zeros((ROWS, CHANNELS), COMPUTE)
    sum1 = tl.zeros((ROWS, CHANNELS), COMPUTE)
    sum2 = tl.zeros((ROWS, CHANNELS), COMPUTE)
    sum3 = tl.zeros((ROWS, CHANNELS), COMPUTE)
    sum4 = tl.zeros((ROWS, CHANNELS), COMPUTE)
    sum5 = tl.zeros((ROWS, CHANNELS), COMPUTE)
    sum6 = tl.zeros((ROWS, CHANNELS), COMPUTE)
    sum7 = tl.zeros((ROWS, CHANNELS), COMPUTE)
    sum8 = tl.zeros((ROWS, CHANNELS), COMPUTE)
    sum_bias = tl.zeros((ROWS, CHANNELS), COMPUTE)
    for i in range(0, STRIP + 2):
        y = top + i - 1
        token = first_token + y * w + x
        # Triton's interpreter cannot combine a scalar condition with a mask.
        width = tl.where((y >= 0) & (y < h), w, 0)
        is_row = is_channel_row & (x < width)
        at = image * num_tokens + token + w
        is_next = is_channel_row & (x < tl.where(y + 1 < bottom, w, 0))
        below = load_pixels(grad_sum, at, channel, is_next, C, COMPUTE)
        at = image * tokens_rows + token
        before = load_pixels(
            tokens, at - 1, channel, is_row & (x > 0), TOKENS_ROW, COMPUTE)  # fmt: skip
        pixel = load_pixels(tokens, at, channel, is_row, TOKENS_ROW, COMPUTE)
        after = load_pixels(
            tokens, at + 1, channel, is_row & (x + 1 < w), TOKENS_ROW, COMPUTE)  # fmt: skip
        sum0 += before * below
        sum1 += pixel * below
        sum2 += after * below
        sum3 += before * here
        sum4 += pixel * here
        sum5 += after * here
        sum6 += before * above
        sum7 += pixel * above
        sum8 += after * above
        sum_bias += below
        above = here
        here = below
    tiles = tl.num_programs(0) // GROUPS
    partial += (image * tiles + tile) * (10 * C)
    store_sum(partial, channel, is_channel, 0, C, sum0)
    store_sum(partial, channel, is_channel, 1, C, sum1)
    store_sum(partial, channel, is_channel, 2, C, sum2)
    store_sum(partial, channel, is_channel, 3, C, sum3)
    store_sum(partial, channel, is_channel, 4, C, sum4)
    store_sum(partial, channel, is_channel, 5, C, sum5)
    store_sum(partial, channel, is_channel, 6, C, sum6)
    store_sum(partial, channel, is_channel, 7, C, sum7)
    store_sum(partial, channel, is_channel, 8, C, sum8)
    store_sum(partial, channel, is_channel, 9, C, sum_bias)
