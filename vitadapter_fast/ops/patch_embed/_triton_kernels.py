# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Triton kernels of the patch embedding; csrc/patch_embed/bicubic.h explains the taps."""

import triton
import triton.language as tl

# Sizes that change from image to image; a kernel is compiled once for all of them.
_RESIZE = [f"{axis}_{name}" for axis in "yx" for name in ("inputs", "num", "den", "unit", "radius")]


@triton.jit
def _cubic(output, input, num, den, unit, ANTIALIAS: tl.constexpr, DTYPE: tl.constexpr):
    # Keys' kernel at |x(output) - input|, a ratio of integers; a as torch has it.
    apart = (2 * input + 1) * den - (2 * output + 1) * num
    d = tl.abs(apart).to(DTYPE) / (2 * unit).to(DTYPE)
    a: tl.constexpr = -0.5 if ANTIALIAS else -0.75
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return tl.where(d <= 1, near, tl.where(d < 2, far, 0.0))


@triton.jit
def _taps(inputs, radius, ANTIALIAS: tl.constexpr):
    # Without antialias a border row stands for those beyond it, so none can be left out.
    return tl.minimum(2 * radius, inputs) if ANTIALIAS else 2 * radius


@triton.jit
def _first_input(output, inputs, num, den, radius, ANTIALIAS: tl.constexpr):
    # Output coordinates in inputs are at least -1/2, so one input more keeps the quotient positive.
    first = ((2 * output + 1) * num + den) // (2 * den) - radius
    if ANTIALIAS:
        first = tl.maximum(tl.minimum(first, inputs - 2 * radius), 0)
    return first


@triton.jit
def _total(
    output, inputs, num, den, unit, radius, ANTIALIAS: tl.constexpr, DTYPE: tl.constexpr
):  # fmt: skip
    # Weights add up to one by themselves, but for those that antialias cuts off at the border.
    total = tl.zeros_like(output).to(DTYPE) + (0 if ANTIALIAS else 1)
    if ANTIALIAS:
        first = _first_input(output, inputs, num, den, radius, ANTIALIAS)
        for tap in range(_taps(inputs, radius, ANTIALIAS)):
            total += _cubic(output, first + tap, num, den, unit, ANTIALIAS, DTYPE)
    return total


@triton.jit
def _add_tap(
    sum, i, j, y, x, scale, table, channel, C,
    y_inputs, y_num, y_den, y_unit, x_inputs, x_num, x_den, x_unit,
    ANTIALIAS: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    weight = _cubic(i, y, y_num, y_den, y_unit, ANTIALIAS, DTYPE)
    weight *= scale * _cubic(j, x, x_num, x_den, x_unit, ANTIALIAS, DTYPE)
    y = tl.minimum(tl.maximum(y, 0), y_inputs - 1)
    x = tl.minimum(tl.maximum(x, 0), x_inputs - 1)
    row = table + (y * x_inputs + x)[:, None] * C + channel[None, :]
    return sum + weight[:, None] * tl.load(row, mask=(channel < C)[None, :], other=0.0).to(DTYPE)


# A program is a tile of tokens x channels: the patch GEMM with its image tile gathered from where
# it lies, on top of bias and position sum in registers. Registers, at most: 128 but for float64.
@triton.jit(do_not_specialize=["tokens", "h", "w", *_RESIZE])
def embed_kernel(
    image, weight, bias, table, out,
    stride_b, stride_i, stride_y, tokens, h, w, C,
    y_inputs, y_num, y_den, y_unit, y_radius, x_inputs, x_num, x_den, x_unit, x_radius,
    K: tl.constexpr, PATCH_H: tl.constexpr, PATCH_W: tl.constexpr, STRIDE_X: tl.constexpr,
    ANTIALIAS: tl.constexpr, HAS_BIAS: tl.constexpr,
    WIDENS: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    DTYPE: tl.constexpr = tl.float64 if out.dtype.element_ty == tl.float64 else tl.float32
    token = tl.program_id(0) * BM + tl.arange(0, BM)
    channel = tl.program_id(1) * BN + tl.arange(0, BN)
    is_token, is_channel = token < tokens, channel < C
    # Threads past the last token work on it once more, so that no address is out of bounds.
    pixel = tl.minimum(token, tokens - 1)
    b = (pixel // (h * w)).to(tl.int64)
    i, j = pixel % (h * w) // w, pixel % w
    # Every stride of the image may be long: a permuted clip has its frames between two channels.
    corner = image + b * stride_b + (i * PATCH_H).to(tl.int64) * stride_y
    corner += (j * PATCH_W).to(tl.int64) * STRIDE_X

    first_y = _first_input(i, y_inputs, y_num, y_den, y_radius, ANTIALIAS)
    first_x = _first_input(j, x_inputs, x_num, x_den, x_radius, ANTIALIAS)
    taps_x = _taps(x_inputs, x_radius, ANTIALIAS)
    scale = 1.0 / (
        _total(i, y_inputs, y_num, y_den, y_unit, y_radius, ANTIALIAS, DTYPE)
        * _total(j, x_inputs, x_num, x_den, x_unit, x_radius, ANTIALIAS, DTYPE)
    )
    # Taps come first: each is rounded to the size of the sum so far. They are not unrolled: with
    # the rows of all taps in flight registers spill.
    sum = tl.zeros((BM, BN), DTYPE)
    for tap in range(_taps(y_inputs, y_radius, ANTIALIAS) * taps_x):
        sum = _add_tap(
            sum, i, j, first_y + tap // taps_x, first_x + tap % taps_x, scale, table, channel, C,
            y_inputs, y_num, y_den, y_unit, x_inputs, x_num, x_den, x_unit,
            ANTIALIAS, DTYPE,
        )  # fmt: skip
    if HAS_BIAS:
        sum += tl.load(bias + channel, mask=is_channel, other=0.0).to(DTYPE)[None, :]

    for k in range(0, K, BK):
        at = k + tl.arange(0, BK)
        line = at % (PATCH_H * PATCH_W)
        offset = (at // (PATCH_H * PATCH_W)).to(tl.int64) * stride_i
        offset += (line // PATCH_W).to(tl.int64) * stride_y
        offset += (line % PATCH_W).to(tl.int64) * STRIDE_X
        patches = tl.load(corner[:, None] + offset[None, :], mask=(at < K)[None, :], other=0.0)
        filters = tl.load(
            weight + channel[None, :] * K + at[:, None],
            mask=(at < K)[:, None] & is_channel[None, :],
            other=0.0,
        )
        if WIDENS:
            patches, filters = patches.to(DTYPE), filters.to(DTYPE)
        sum = tl.dot(patches, filters, sum, input_precision=PRECISION, out_dtype=DTYPE)
    to = out + token.to(tl.int64)[:, None] * C + channel[None, :]
    tl.store(to, sum.to(out.dtype.element_ty), mask=is_token[:, None] & is_channel[None, :])


@triton.jit
def _share(
    output, input, inputs, num, den, unit, radius,
    ANTIALIAS: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    weight = _cubic(output, input, num, den, unit, ANTIALIAS, DTYPE)
    if ANTIALIAS:
        weight /= _total(output, inputs, num, den, unit, radius, ANTIALIAS, DTYPE)
    else:
        low = _cubic(output, -1, num, den, unit, ANTIALIAS, DTYPE)
        low += _cubic(output, -2, num, den, unit, ANTIALIAS, DTYPE)
        high = _cubic(output, inputs, num, den, unit, ANTIALIAS, DTYPE)
        high += _cubic(output, inputs + 1, num, den, unit, ANTIALIAS, DTYPE)
        weight += tl.where(input == 0, low, 0.0) + tl.where(input == inputs - 1, high, 0.0)
    return weight


@triton.jit
def _first_output(input, outputs, num, den, reach):
    # Input coordinates in outputs are at least -1/2 as well.
    first = ((2 * input + 1) * den + num) // (2 * num) - reach
    return tl.maximum(tl.minimum(first, outputs - 2 * reach), 0)


# A program is some rows of the table x channels: each gathers what the grid took of it, in a fixed
# order, from as many places as the largest gathers from. Registers, at most: 64.
@triton.jit(do_not_specialize=["h", "w", "y_reach", "x_reach", *_RESIZE])
def table_gradient_kernel(
    grad, out, h, w, C, y_reach, x_reach,
    y_inputs, y_num, y_den, y_unit, y_radius, x_inputs, x_num, x_den, x_unit, x_radius,
    ANTIALIAS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    DTYPE: tl.constexpr = grad.dtype.element_ty
    target = tl.program_id(0) * BM + tl.arange(0, BM)
    channel = tl.program_id(1) * BN + tl.arange(0, BN)
    is_channel = (channel < C)[None, :]
    # Rows past the last gather like some other and are not stored.
    y, x = tl.minimum(target // x_inputs, y_inputs - 1), target % x_inputs
    first_i = _first_output(y, h, y_num, y_den, y_reach)
    first_j = _first_output(x, w, x_num, x_den, x_reach)
    sum = tl.zeros((BM, BN), DTYPE)
    for below in range(tl.minimum(2 * y_reach, h)):
        i = first_i + below
        share_y = _share(i, y, y_inputs, y_num, y_den, y_unit, y_radius, ANTIALIAS, DTYPE)
        for right in range(tl.minimum(2 * x_reach, w)):
            j = first_j + right
            share = _share(j, x, x_inputs, x_num, x_den, x_unit, x_radius, ANTIALIAS, DTYPE)
            at = (i * w + j)[:, None] * C + channel[None, :]
            sum += (share_y * share)[:, None] * tl.load(grad + at, mask=is_channel, other=0.0)
    to = out + target[:, None] * C + channel[None, :]
    mask = (target < y_inputs * x_inputs)[:, None] & is_channel
    tl.store(to, sum.to(out.dtype.element_ty), mask=mask)
