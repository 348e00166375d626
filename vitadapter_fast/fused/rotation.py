# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Projected queries, keys and values in; by heads, rotated where they lie, out."""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import ops
from ..native import tensors
from ..ops._backends import requested
from ..ops.rope import cpu, cuda
from ..ops.rope._call import Call
from ._choice import touched_reason


def rotated(attn: Any, qkv: Tensor, heads: Tensor, hw: tuple[int, int], rope: Tensor) -> Tensor:
    """Return queries, keys and values by heads, rotated.

    Args:
        attn: An ``Attention``.
        qkv: What its projection returned, [B, N, 3 * C]; may be overwritten.
        heads: A view of it, [B, N, 3, M, D].
        hw: (h, w) of the token grid.
        rope: As for ``ops.rope``.
    """
    if in_place_reason(attn, Call(heads, rope, list(hw), False)) is not None:
        return ops.rope(heads, rope, hw)
    if not (torch.is_grad_enabled() and qkv.requires_grad):
        _backend(heads).rotate_in_place(Call(heads, rope, list(hw), False))
        return heads
    qkv = _Rotated.apply(qkv, attn.num_heads, rope, hw)  # type: ignore[no-untyped-call]
    return torch.unflatten(qkv, 2, heads.shape[2:])


def in_place_reason(attn: Any, call: Call) -> str | None:
    """Return why an ``Attention`` rotates a copy of what it projected, or None."""
    if tensors.is_recorded():
        return "a compiler or tracer records it"
    if type(call.qkv) is not Tensor:
        return f"its tokens are a {type(call.qkv).__name__}"
    if (name := requested(None)) not in (None, "cpu", "cuda"):
        return f"{name} was asked for"
    # Nobody else may have seen what the projection returned.
    if (reason := touched_reason(attn, "qkv")) is not None:
        return reason
    return _backend(call.qkv).unsupported_reason(call)  # type: ignore[no-any-return]


def _backend(heads: Tensor) -> ModuleType:
    return cpu if tensors.is_on_cpu(heads) else cuda


class _Rotated(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, num_heads: int, tables: Tensor, hw: tuple[int, int]
    ) -> Tensor:
        ctx.save_for_backward(tables)
        ctx.num_heads, ctx.hw = num_heads, hw
        ctx.mark_dirty(qkv)
        heads = torch.unflatten(qkv, 2, (3, num_heads, -1))
        _backend(qkv).rotate_in_place(Call(heads, tables, list(hw), False))
        return qkv

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (tables,) = ctx.saved_tensors
        heads = torch.unflatten(grad, 2, (3, ctx.num_heads, -1))
        return ops.rope(heads, tables, ctx.hw, is_inverse=True).flatten(2), None, None, None
