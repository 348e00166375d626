# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""What one call carries, and every check of it, shared by the op's backends and its fake."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ...native.tensors import dense_rows
from .._arguments import FLOATS, has_bad_sizes, num_pixels, pairs


class Call(NamedTuple):
    """One call of ``dwconv_gelu``.

    Attributes:
        tokens: The grids one after the other, [B, N, C].
        grid_hw: h0, w0, h1, w1, ... of the grids.
        weight: [C, 1, 3, 3].
        bias: [C] or None.
    """

    tokens: Tensor
    grid_hw: list[int]
    weight: Tensor
    bias: Tensor | None


def check(call: Call) -> None:
    """Raise ValueError unless all shapes, dtypes and devices agree."""
    tokens, grid_hw, weight, bias = call
    if has_bad_sizes(grid_hw):
        raise ValueError(
            f"dwconv_gelu: grid_hw must be (h, w) pairs of positive sizes, got {list(grid_hw)}"
        )
    if tokens.dim() != 3 or tokens.shape[2] < 1:
        raise ValueError(
            f"dwconv_gelu: tokens must be [B, N, C] with a channel, got {tuple(tokens.shape)}"
        )
    _, N, C = tokens.shape
    if num_pixels(grid_hw) != N:
        raise ValueError(
            f"dwconv_gelu: grid_hw {pairs(grid_hw)} must hold as many pixels as there are tokens, "
            f"{N}"
        )
    if weight.shape != (C, 1, 3, 3):
        raise ValueError(
            f"dwconv_gelu: weight must be [{C}, 1, 3, 3] to match tokens, got {tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != (C,):
        raise ValueError(f"dwconv_gelu: bias must be [{C}] or None, got {tuple(bias.shape)}")
    if tokens.dtype not in FLOATS:
        raise ValueError(f"dwconv_gelu: tokens must be a floating tensor, got {tokens.dtype}")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is None:
            continue
        if tensor.dtype != tokens.dtype:
            raise ValueError(
                f"dwconv_gelu: {name} must be {tokens.dtype} like tokens, got {tensor.dtype}"
            )
        if tensor.device != tokens.device:
            raise ValueError(
                f"dwconv_gelu: {name} must be on {tokens.device} with tokens, got {tensor.device}"
            )


def dense(call: Call) -> Call:
    """Return the call with tensors that kernels can read; hold it until the launch returns."""
    return call._replace(
        tokens=dense_rows(call.tokens),
        weight=call.weight.contiguous(),
        bias=None if call.bias is None else call.bias.contiguous(),
    )


def split_sums(
    call: Call, partial: Tensor | None, needs: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of weight and bias from partial sums, [any, 10, C], the bias last."""
    if partial is None:
        return None, None
    total = partial.sum(0)
    weight = total[:9].T.reshape(-1, 1, 3, 3).to(call.weight.dtype) if needs[1] else None
    return weight, total[9].to(call.weight.dtype) if needs[2] else None


def new_outputs(call: Call) -> Tensor:
    """Return memory for the result, [B, N, C]."""
    return call.tokens.new_empty(call.tokens.shape)


def flops(call: Call) -> int:
    """Return 2 for every token and element of the kernel, with zero borders, as torch counts."""
    return 2 * call.tokens.shape[0] * call.tokens.shape[1] * call.weight.numel()


def backward_flops(call: Call, needs: Sequence[bool]) -> int:
    """Return the same for each gradient of tokens and kernel, and to compute GELU's input anew."""
    return flops(call) * (1 + needs[0] + needs[1])
