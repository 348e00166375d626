# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""What one call carries, and every check of it, shared by the op's backends and its fake."""

from typing import NamedTuple

import torch
from torch import Tensor

from .._arguments import FLOATS


class Call(NamedTuple):
    """One call of ``batch_norm``.

    Attributes:
        tokens: [B, N, C].
        weight: [C].
        bias: [C].
        eps: Added to the variance.
        has_relu: Whether ReLU follows.
        has_planes: Whether the result is [B, C, N].
    """

    tokens: Tensor
    weight: Tensor
    bias: Tensor
    eps: float
    has_relu: bool
    has_planes: bool


def check(call: Call) -> None:
    """Raise ValueError unless all shapes, dtypes and devices agree."""
    tokens = call.tokens
    if tokens.dim() != 3 or tokens.shape[0] * tokens.shape[1] < 1 or tokens.shape[2] < 1:
        raise ValueError(
            "batch_norm: tokens must be [B, N, C] with a token and a channel, got "
            f"{tuple(tokens.shape)}"
        )
    if tokens.dtype not in FLOATS:
        raise ValueError(f"batch_norm: tokens must be a floating tensor, got {tokens.dtype}")
    compute = torch.promote_types(tokens.dtype, torch.float32)
    for name, tensor in (("weight", call.weight), ("bias", call.bias)):
        if tensor.shape != tokens.shape[2:]:
            raise ValueError(
                f"batch_norm: {name} must be [{tokens.shape[2]}] to match tokens, got "
                f"{tuple(tensor.shape)}"
            )
        if tensor.dtype != compute:
            raise ValueError(
                f"batch_norm: {name} must be {compute} for {tokens.dtype} tokens, got "
                f"{tensor.dtype}"
            )
        if tensor.device != tokens.device:
            raise ValueError(
                f"batch_norm: {name} must be on {tokens.device} with tokens, got {tensor.device}"
            )


def new_outputs(call: Call) -> tuple[Tensor, Tensor, Tensor]:
    """Return memory for the result, [B, N, C] or [B, C, N], mean and variance, [C] each."""
    B, N, C = call.tokens.shape
    out = call.tokens.new_empty((B, C, N) if call.has_planes else (B, N, C))
    return out, call.weight.new_empty(C), call.weight.new_empty(C)
