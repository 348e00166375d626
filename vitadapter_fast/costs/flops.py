# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""One operator call in, its floating-point operations out.

A multiply-add is 2. Counted are the sums over many terms: matrix products, convolutions, attention,
sampling. Biases, activations, norms, softmax and resizing are not: they cost bytes, not arithmetic.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.utils.flop_counter import flop_registry

NAMESPACE = "vitadapter_fast"


def flops_of(op: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> int:
    """Return the FLOPs of a call of ``op``; 0 for torch's operators that only move data.

    Args:
        op: The operator that was called, of torch.ops.
        args: Its positional arguments; of tensors only shapes are read.
        kwargs: Its keyword arguments.
        out: Its result.

    Raises:
        NotImplementedError: ``op`` is one of this library and has no formula.
    """
    packet = getattr(op, "_overloadpacket", op)
    name = f"{getattr(op, 'namespace', '')}::{getattr(packet, '__name__', '')}"
    if name in FORMULAS:
        return FORMULAS[name](*args)
    if name.startswith(f"{NAMESPACE}::"):
        raise NotImplementedError(
            f"flops_of: {name} has no formula; add one to FORMULAS in {__name__}"
        )
    formula = flop_registry.get(packet)
    return 0 if formula is None else int(formula(*args, **kwargs, out_val=out))


def _sampling(value: Tensor, *rest: Any) -> int:
    """4 corners x 2 for every point and channel: B * Q * M * L * P points, D channels."""
    weights: Tensor = rest[-1]
    return 8 * weights.numel() * (math.prod(value.shape[2:]) // weights.shape[2])


def _elementwise(*args: Any) -> int:
    """None: norms and rotations cost bytes, as torch's."""
    return 0


def _patch_embed(image: Tensor, weight: Tensor, *rest: Any) -> int:
    """2 for every token and element of the patch kernel."""
    patch_h, patch_w = weight.shape[2:]
    tokens = image.shape[0] * (image.shape[2] // patch_h) * (image.shape[3] // patch_w)
    return 2 * tokens * weight.numel()


def _dwconv_gelu(tokens: Tensor, grid_hw: Sequence[int], weight: Tensor, *rest: Any) -> int:
    """2 for every token and element of the kernel, zero borders included as for torch's."""
    return 2 * tokens.shape[0] * tokens.shape[1] * weight.numel()


def _window_attention(qkv: Tensor, hw: Sequence[int], window_size: int) -> int:
    """2 products of 2 * D for every head and pair of tokens that share a window.

    Padding is left out: its keys and values are zeros, whatever the tokens are.
    """
    B, _, _, M, D = qkv.shape
    # Over windows of r x c tokens, the sum of (r * c)^2 is the product of two sums.
    sides = [window_size or length for length in hw]
    pairs = _sum_of_squares(hw[0], sides[0]) * _sum_of_squares(hw[1], sides[1])
    return 4 * B * M * D * pairs


def _sum_of_squares(length: int, part: int) -> int:
    return int(length // part * part**2 + (length % part) ** 2)


def _attention(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> int:
    """2 products for every head and pair of query and key, [B, M, Q, D] and [B, M, S, D]."""
    B, M, Q, D = query.shape
    return 2 * B * M * Q * key.shape[2] * (D + value.shape[3])


def _addmm(total: Tensor, left: Tensor, right: Tensor, *rest: Any) -> int:
    """2 for every element of both and of the sum: [N, K] x [K, C]."""
    return 2 * left.numel() * right.shape[1]


FORMULAS: dict[str, Callable[..., int]] = {
    f"{NAMESPACE}::batch_norm": _elementwise,
    f"{NAMESPACE}::dwconv_gelu": _dwconv_gelu,
    f"{NAMESPACE}::ms_deform_attn": _sampling,
    f"{NAMESPACE}::ms_deform_attn_grid": _sampling,
    f"{NAMESPACE}::patch_embed": _patch_embed,
    f"{NAMESPACE}::rope": _elementwise,
    f"{NAMESPACE}::window_attention": _window_attention,
    # torch's counter does not know the one, and the other on GPUs only.
    "aten::addmm_": _addmm,
    "aten::_scaled_dot_product_flash_attention_for_cpu": _attention,
}
