# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Queries, keys and values of all windows in, attended tokens or gradients out.

All kernels share one division of work: the first axis of a launch is a block of tokens of a window,
the second a head, the third an image. ``blocks`` of ROWS tokens hold the largest window; windows at
the border have fewer tokens, of which blocks past the last return at once. The tokens that a block
meets come STEP at a time. ``blocks`` is not compiled into a kernel: it changes with the image where
a window is larger than its grid.
"""

import triton
import triton.language as tl

from .._triton import Config

# Bytes of an element -> launch parameters (rows are tokens of a block), and tokens that a block
# meets at a time: twice as many spill in the gradients.
CONFIGS = {2: Config(64, 4, 2), 4: Config(64, 8, 2), 8: Config(16, 4, 1)}
STEPS = {2: 32, 4: 16, 8: 16}
# Heads wider than this take half as many tokens.
WIDEST = 128


# Returns the first token of a window of the grid, how many of its columns are real, and how many
# of its tokens.
@triton.jit
def find_window(index, h, w, window_size):
    across = (w + window_size - 1) // window_size
    top = index // across * window_size
    left = index % across * window_size
    columns = tl.minimum(w - left, window_size)
    return top * w + left, columns, tl.minimum(h - top, window_size) * columns


# Returns the places in the grid of ROWS tokens of a window, from ``start`` on, and which are real.
@triton.jit
def find_tokens(start, first, columns, count, w, ROWS: tl.constexpr):
    at = start + tl.arange(0, ROWS)
    return first + at // columns * w + at % columns, at < count


@triton.jit
def load_rows(rows, token, is_token, D: tl.constexpr, ROW: tl.constexpr, CHANNELS: tl.constexpr):
    channel = tl.arange(0, CHANNELS)[None, :]
    mask = is_token[:, None] & (channel < D)
    return tl.load(rows + token.to(tl.int64)[:, None] * ROW + channel, mask=mask, other=0.0)


@triton.jit
def store_rows(rows, token, is_token, values, D: tl.constexpr, ROW: tl.constexpr,
               CHANNELS: tl.constexpr):  # fmt: skip
    channel = tl.arange(0, CHANNELS)[None, :]
    mask = is_token[:, None] & (channel < D)
    to = rows + token.to(tl.int64)[:, None] * ROW + channel
    tl.store(to, values.to(rows.dtype.element_ty), mask=mask)


@triton.jit
def multiply(a, b, sum, WIDENS: tl.constexpr, PRECISION: tl.constexpr):
    if WIDENS:
        a = a.to(sum.dtype)
        b = b.to(sum.dtype)
    return tl.dot(a, b, sum, input_precision=PRECISION, out_dtype=sum.dtype)


# Programs keep a running softmax: peak, sum of the numerators, and sum of values so weighted. It
# starts with the padding keys, each of which has logit 0 and value 0. Registers, at most: 200.
# fmt: off
@triton.jit(do_not_specialize=["qkv_rows", "h", "w", "window_size", "blocks"])
def forward_kernel(qkv, out, logsumexp, qkv_rows, h, w, window_size, blocks,
                   M: tl.constexpr, D: tl.constexpr, SCALE: tl.constexpr, QKV_ROW: tl.constexpr,
                   WIDENS: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr,
                   STEP: tl.constexpr, CHANNELS: tl.constexpr):
    # fmt: on
    COMPUTE: tl.constexpr = logsumexp.dtype.element_ty
    block = tl.program_id(0) % blocks
    head = tl.program_id(1)
    image = tl.program_id(2).to(tl.int64)
    first, columns, count = find_window(tl.program_id(0) // blocks, h, w, window_size)
    if block * ROWS >= count:
        return
    token, is_token = find_tokens(block * ROWS, first, columns, count, w, ROWS)
    rows = qkv + image * qkv_rows * QKV_ROW + head * D
    query = load_rows(rows, token, is_token, D, QKV_ROW, CHANNELS)
    # In floating point: the square of a side may be beyond integers. Not by `to`: compilers may
    # make a constant of a side of 1.
    padding = window_size * 1.0 * window_size - count.to(COMPUTE)
    peak = tl.zeros((ROWS,), COMPUTE) + tl.where(padding > 0, 0.0, -float("inf")).to(COMPUTE)
    total = tl.zeros((ROWS,), COMPUTE) + padding
    sum = tl.zeros((ROWS, CHANNELS), COMPUTE)
    for start in range(0, count, STEP):
        key_token, is_key = find_tokens(start, first, columns, count, w, STEP)
        key = load_rows(rows + M * D, key_token, is_key, D, QKV_ROW, CHANNELS)
        value = load_rows(rows + 2 * M * D, key_token, is_key, D, QKV_ROW, CHANNELS)
        logits = tl.zeros((ROWS, STEP), COMPUTE)
        logits = multiply(query, tl.trans(key), logits, WIDENS, PRECISION) * SCALE
        logits = tl.where(is_key[None, :], logits, -float("inf"))
        higher = tl.maximum(peak, tl.max(logits, 1))
        shrink = tl.exp(peak - higher)
        numerators = tl.exp(logits - higher[:, None])
        total = total * shrink + tl.sum(numerators, 1)
        numerators = numerators.to(value.dtype)
        sum = multiply(numerators, value, sum * shrink[:, None], WIDENS, PRECISION)
        peak = higher
    to = out + (image * h * w * M + head) * D
    store_rows(to, token, is_token, sum / total[:, None], D, M * D, CHANNELS)
    at = (image * h * w + token) * M + head
    tl.store(logsumexp + at, peak + tl.log(total), mask=is_token)


# The gradient of a block's queries. On its way it stores what the kernel below needs of each query:
# the product of output and gradient. Registers, at most: 128.
# fmt: off
@triton.jit(do_not_specialize=["qkv_rows", "grad_out_rows", "h", "w", "window_size", "blocks"])
def query_gradient_kernel(qkv, out, logsumexp, grad_out, products, grad_qkv, qkv_rows,
                          grad_out_rows, h, w, window_size, blocks,
                          M: tl.constexpr, D: tl.constexpr, SCALE: tl.constexpr,
                          QKV_ROW: tl.constexpr, GRAD_OUT_ROW: tl.constexpr, WIDENS: tl.constexpr,
                          PRECISION: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr,
                          CHANNELS: tl.constexpr):
    # fmt: on
    COMPUTE: tl.constexpr = logsumexp.dtype.element_ty
    block = tl.program_id(0) % blocks
    head = tl.program_id(1)
    image = tl.program_id(2).to(tl.int64)
    first, columns, count = find_window(tl.program_id(0) // blocks, h, w, window_size)
    if block * ROWS >= count:
        return
    token, is_token = find_tokens(block * ROWS, first, columns, count, w, ROWS)
    rows = qkv + image * qkv_rows * QKV_ROW + head * D
    query = load_rows(rows, token, is_token, D, QKV_ROW, CHANNELS)
    from_grad = grad_out + image * grad_out_rows * GRAD_OUT_ROW + head * D
    grad = load_rows(from_grad, token, is_token, D, GRAD_OUT_ROW, CHANNELS)
    from_out = out + (image * h * w * M + head) * D
    attended = load_rows(from_out, token, is_token, D, M * D, CHANNELS)
    product = tl.sum(grad.to(COMPUTE) * attended.to(COMPUTE), 1)
    at = (image * h * w + token) * M + head
    tl.store(products + at, product, mask=is_token)
    subtracted = tl.load(logsumexp + at, mask=is_token, other=0.0)
    sum = tl.zeros((ROWS, CHANNELS), COMPUTE)
    for start in range(0, count, STEP):
        key_token, is_key = find_tokens(start, first, columns, count, w, STEP)
        key = load_rows(rows + M * D, key_token, is_key, D, QKV_ROW, CHANNELS)
        value = load_rows(rows + 2 * M * D, key_token, is_key, D, QKV_ROW, CHANNELS)
        zeros = tl.zeros((ROWS, STEP), COMPUTE)
        logits = multiply(query, tl.trans(key), zeros, WIDENS, PRECISION) * SCALE
        # Rows past the last key would meet a low logsumexp as infinity.
        logits = tl.where(is_key[None, :], logits - subtracted[:, None], -float("inf"))
        slope = multiply(grad, tl.trans(value), zeros, WIDENS, PRECISION) - product[:, None]
        sum = multiply((tl.exp(logits) * slope).to(key.dtype), key, sum, WIDENS, PRECISION)
    to = grad_qkv + (image * h * w * (3 * M) + head) * D
    store_rows(to, token, is_token, sum * SCALE, D, 3 * M * D, CHANNELS)


# The gradients of a block's keys and values, summed over the queries in their order. Registers, at
# most: 184.
# fmt: off
@triton.jit(do_not_specialize=["qkv_rows", "grad_out_rows", "h", "w", "window_size", "blocks"])
def key_gradient_kernel(qkv, logsumexp, grad_out, products, grad_qkv, qkv_rows, grad_out_rows, h, w,
                        window_size, blocks,
                        M: tl.constexpr, D: tl.constexpr, SCALE: tl.constexpr,
                        QKV_ROW: tl.constexpr, GRAD_OUT_ROW: tl.constexpr, WIDENS: tl.constexpr,
                        PRECISION: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr,
                        CHANNELS: tl.constexpr):
    # fmt: on
    COMPUTE: tl.constexpr = logsumexp.dtype.element_ty
    block = tl.program_id(0) % blocks
    head = tl.program_id(1)
    image = tl.program_id(2).to(tl.int64)
    first, columns, count = find_window(tl.program_id(0) // blocks, h, w, window_size)
    if block * ROWS >= count:
        return
    token, is_token = find_tokens(block * ROWS, first, columns, count, w, ROWS)
    rows = qkv + image * qkv_rows * QKV_ROW + head * D
    key = load_rows(rows + M * D, token, is_token, D, QKV_ROW, CHANNELS)
    value = load_rows(rows + 2 * M * D, token, is_token, D, QKV_ROW, CHANNELS)
    from_grad = grad_out + image * grad_out_rows * GRAD_OUT_ROW + head * D
    key_sum = tl.zeros((ROWS, CHANNELS), COMPUTE)
    value_sum = tl.zeros((ROWS, CHANNELS), COMPUTE)
    for start in range(0, count, STEP):
        query_token, is_query = find_tokens(start, first, columns, count, w, STEP)
        query = load_rows(rows, query_token, is_query, D, QKV_ROW, CHANNELS)
        grad = load_rows(from_grad, query_token, is_query, D, GRAD_OUT_ROW, CHANNELS)
        at = (image * h * w + query_token) * M + head
        subtracted = tl.load(logsumexp + at, mask=is_query, other=0.0)
        product = tl.load(products + at, mask=is_query, other=0.0)
        zeros = tl.zeros((ROWS, STEP), COMPUTE)
        # [keys, queries]. Past the last query all is zero; what is past the last key is not stored.
        logits = multiply(key, tl.trans(query), zeros, WIDENS, PRECISION) * SCALE
        share = tl.exp(logits - subtracted[None, :])
        value_sum = multiply(share.to(grad.dtype), grad, value_sum, WIDENS, PRECISION)
        slope = multiply(value, tl.trans(grad), zeros, WIDENS, PRECISION) - product[None, :]
        key_sum = multiply((share * slope).to(query.dtype), query, key_sum, WIDENS, PRECISION)
    to = grad_qkv + (image * h * w * (3 * M) + head) * D
    store_rows(to + M * D, token, is_token, key_sum * SCALE, D, 3 * M * D, CHANNELS)
    store_rows(to + 2 * M * D, token, is_token, value_sum, D, 3 * M * D, CHANNELS)
