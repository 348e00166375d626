# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Tokens and a residual branch in; tokens with the branch added, or not, in training, out."""

from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..native import tensors
from .plain import is_watched


class DropPath(nn.Module):
    """Draw which samples keep a branch in training; they are scaled up for those that do not.

    Source: Huang et al. 2016, arXiv:1603.09382.
    """

    def __init__(self, rate: float) -> None:
        """Drop at ``rate``, in [0, 1)."""
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor | None:
        """Return a factor for the branch of each sample of ``x``, [B, 1, 1], or None for 1."""
        if self.rate == 0.0 or not self.training:
            return None
        keep = 1.0 - self.rate
        return x.new_empty(x.shape[0], 1, 1).bernoulli_(keep).div_(keep)


def add_branch(drop_path: nn.Module, branch: nn.Module, x: Tensor, *args: Any) -> Tensor:
    """Return ``branch(x, *args, kept=drop_path(x))``, which is x + kept * the branch of x.

    Where no sample keeps the branch, nothing of it is computed on the CPU; its parameters get zeros
    as their gradients, as they would (5 % of a training step of S with one image of 512 x 512,
    AMD EPYC). A GPU would have to be waited for to know.

    Args:
        drop_path: A ``DropPath``.
        branch: Adds to its first argument what it makes of it.
        x: Tokens, [B, N, C].
        args: The branch's other arguments; its norm and parameters may be among them.
    """
    kept: Tensor | None = drop_path(x)
    if (
        kept is None
        or not tensors.is_on_cpu(kept)
        or type(kept) is not Tensor
        or tensors.is_recorded()
    ):
        return branch(x, *args, kept=kept)  # type: ignore[no-any-return]
    modules = [branch, *(arg for arg in args if isinstance(arg, nn.Module))]
    if kept.any() or any(map(is_watched, modules)):
        return branch(x, *args, kept=kept)  # type: ignore[no-any-return]
    parameters = chain.from_iterable(module.parameters() for module in modules)
    given = (arg for arg in args if isinstance(arg, Tensor))
    result: Tensor = _Dropped.apply(x, *parameters, *given)  # type: ignore[no-untyped-call]
    return result


class _Dropped(torch.autograd.Function):
    """Pass tokens by a branch of these parameters."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        # Not kept for the backward pass: others change them in place before it.
        ctx.parameters = parameters
        return x.clone()  # as every branch makes new tokens, which others may change in place

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad[1:]
        pairs = zip(ctx.parameters, needs, strict=True)
        return (grad, *(torch.zeros_like(part) if need else None for part, need in pairs))
