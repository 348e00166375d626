# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""What one call carries, and every check of it, shared by the op's backends and its fake."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .._arguments import FLOATS, check_heads


class Call(NamedTuple):
    """One call of ``window_attention``.

    Attributes:
        qkv: Queries, keys and values, [B, h * w, 3, M, D].
        hw: h and w of the token grid.
        window_size: Side of a window in tokens; 0 for one window of the whole grid.
    """

    qkv: Tensor
    hw: list[int]
    window_size: int


def check(call: Call) -> None:
    """Raise ValueError unless shape, dtype and sizes agree."""
    qkv, hw, window_size = call
    if len(hw) != 2 or any(size < 1 for size in hw):
        raise ValueError(
            f"window_attention: hw must be the positive (h, w) of the token grid, got {tuple(hw)}"
        )
    if window_size < 0:
        raise ValueError(f"window_attention: window_size must not be negative, got {window_size}")
    check_heads("window_attention", qkv, "h * w")
    if hw[0] * hw[1] != qkv.shape[1]:
        raise ValueError(
            f"window_attention: hw {tuple(hw)} must hold as many tokens as qkv, {qkv.shape[1]}"
        )
    if qkv.dtype not in FLOATS:
        raise ValueError(f"window_attention: qkv must be a floating tensor, got {qkv.dtype}")


def new_outputs(call: Call) -> tuple[Tensor, Tensor]:
    """Return memory for the output, [B, h * w, M * D], and its logsumexp, [B, h * w, M]."""
    B, N, _, M, D = call.qkv.shape
    compute = torch.promote_types(call.qkv.dtype, torch.float32)
    return call.qkv.new_empty(B, N, M * D), call.qkv.new_empty(B, N, M, dtype=compute)


def flops(call: Call) -> int:
    """Return 2 products of 2 * D for every head and pair of tokens that share a window.

    Padding is left out: its keys and values are zeros, whatever the tokens are.
    """
    B, _, _, M, D = call.qkv.shape
    h, w = call.hw
    # Over windows of r x c tokens, the sum of (r * c)^2 is the product of two sums.
    pairs = _squares(h, call.window_size or h) * _squares(w, call.window_size or w)
    return 4 * B * M * D * pairs


def backward_flops(call: Call, needs: Sequence[bool]) -> int:
    """Return 5 products: logits anew, then gradients of weights, values, queries and keys."""
    return flops(call) // 2 * 5


def _squares(length: int, part: int) -> int:
    """Return the sum of squares of parts of a length, the last of which may be shorter."""
    return length // part * part**2 + (length % part) ** 2
