# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A branch that no sample keeps in; tokens out that passed it by, and zeros as its gradients."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..native import tensors


def is_dropped(kept: Tensor) -> bool:
    """Return whether no sample keeps a branch: on the CPU, for a GPU would have to be waited for.

    Nothing of the branch needs to be computed then (5 % of a training step of S with one image of
    512 x 512, AMD EPYC).
    """
    return type(kept) is Tensor and tensors.is_on_cpu(kept) and not kept.any()


def pass_by(x: Tensor, norm: nn.Module, branch: nn.Module, gamma: Tensor | None = None) -> Tensor:
    """Return tokens without a branch; its parameters get zeros as their gradients."""
    more = [] if gamma is None else [gamma]
    parameters = (*norm.parameters(), *branch.parameters(), *more)
    result: Tensor = _Dropped.apply(x, *parameters)  # type: ignore[no-untyped-call]
    return result


class _Dropped(torch.autograd.Function):
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
