# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""What one call carries, and every check of it, shared by the op's backends and its fake."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .._arguments import FLOATS

CHANNELS, GROUP = 16, 4  # as in csrc/int8_linear/params.h
_MAX_INPUTS = 65536


class Call(NamedTuple):
    """One call of ``int8_linear``.

    Attributes:
        x: Tokens, [..., K].
        weight: Int8, [ceil(C / 16), ceil(K / 4), 16, 4].
        scales: [C].
        bias: [C] or None.
        plus: [..., C] or None.
        has_gelu: Whether GELU of x is multiplied.
    """

    x: Tensor
    weight: Tensor
    scales: Tensor
    bias: Tensor | None
    plus: Tensor | None
    has_gelu: bool


def check(call: Call) -> None:
    """Raise ValueError unless shapes, dtypes and devices agree."""
    x, weight, scales, bias, plus, _ = call
    if x.dim() < 1 or not 1 <= x.shape[-1] <= _MAX_INPUTS:
        raise ValueError(
            f"int8_linear: x must be [..., K] with 1 to {_MAX_INPUTS} channels, got "
            f"{tuple(x.shape)}"
        )
    if x.dtype not in FLOATS:
        raise ValueError(f"int8_linear: x must be a floating tensor, got {x.dtype}")
    if scales.dim() != 1 or scales.shape[0] < 1:
        raise ValueError(f"int8_linear: scales must be [C], got {tuple(scales.shape)}")
    K, C = x.shape[-1], scales.shape[0]
    blocks = (-(-C // CHANNELS), -(-K // GROUP), CHANNELS, GROUP)
    if tuple(weight.shape) != blocks:
        raise ValueError(
            f"int8_linear: weight must be {blocks}, [ceil(C / 16), ceil(K / 4), 16, 4], to match "
            f"x and scales, got {tuple(weight.shape)}; int8_weight makes it of a [C, K]"
        )
    if weight.dtype != torch.int8:
        raise ValueError(f"int8_linear: weight must be torch.int8, got {weight.dtype}")
    if bias is not None and tuple(bias.shape) != (C,):
        raise ValueError(
            f"int8_linear: bias must be ({C},) to match scales, got {tuple(bias.shape)}"
        )
    for name, tensor in (("scales", scales), ("bias", bias)):
        if tensor is not None and tensor.dtype != torch.float32:
            raise ValueError(f"int8_linear: {name} must be torch.float32, got {tensor.dtype}")
    if plus is not None and tuple(plus.shape) != (*x.shape[:-1], C):
        raise ValueError(
            f"int8_linear: plus must be {(*x.shape[:-1], C)} to match x and scales, got "
            f"{tuple(plus.shape)}"
        )
    if plus is not None and plus.dtype != x.dtype:
        raise ValueError(f"int8_linear: plus must be {x.dtype} with x, got {plus.dtype}")
    for name, tensor in (("weight", weight), ("scales", scales), ("bias", bias), ("plus", plus)):
        if tensor is not None and tensor.device != x.device:
            raise ValueError(
                f"int8_linear: {name} must be on {x.device} with x, got {tensor.device}"
            )


def new_outputs(call: Call) -> Tensor:
    """Return memory for the projected tokens, [..., C]."""
    return call.x.new_empty((*call.x.shape[:-1], call.scales.shape[0]))


def flops(call: Call) -> int:
    """Return the operations of the product, a multiply-add being 2."""
    return 2 * call.x.numel() * call.scales.shape[0]


def backward_flops(call: Call, needs: Sequence[bool]) -> int:
    """Return those of the gradient of the tokens."""
    return flops(call) if needs[0] else 0
