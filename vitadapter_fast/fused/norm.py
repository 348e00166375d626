# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""An untouched norm in; a map normalized, with ReLU and in another layout, out."""

from typing import Any

import torch
from torch import Tensor, nn

from ..native import tensors
from ..native.extension import unavailable_reason
from ..ops import batch_norm
from .maps import map_to_tokens, tokens_to_map


def is_constant(norm: nn.Module) -> bool:
    """Return whether ``norm`` is a batch norm that scales and shifts by its running statistics."""
    return (
        isinstance(norm, (nn.BatchNorm2d, nn.SyncBatchNorm))
        and not norm.training
        and norm.running_var is not None
    )


def as_affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return scale and shift, [C] each, of a norm that ``is_constant``."""
    assert isinstance(norm, (nn.BatchNorm2d, nn.SyncBatchNorm))
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return scale, torch.addcmul(norm.bias, norm.running_mean, scale, value=-1)


def folded(conv: nn.Conv2d, norm: nn.Module, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
    """Return weight and bias of a convolution without bias and a constant norm after it, or None.

    None where the norm is not constant. They are no narrower than ``dtype``, that of the map.
    """
    if not is_constant(norm):
        return None
    dtype = torch.promote_types(conv.weight.dtype, dtype)
    scale, shift = (part.to(dtype) for part in as_affine(norm))
    return conv.weight.to(dtype) * scale[:, None, None, None], shift


def normalize(
    norm: nn.Module,
    level: Tensor,
    *,
    relu: bool = False,
    memory_format: torch.memory_format = torch.channels_last,
) -> Tensor:
    """Return ``norm(level)``, and ReLU of it if asked, in a memory format.

    Args:
        norm: Normalization, which may be in training.
        level: [B, C, h, w], channels last.
        relu: Whether ReLU follows.
        memory_format: Of the result.
    """
    if not _runs_here(norm, level):
        if tensors.is_recorded():
            level = level.contiguous(memory_format=memory_format)
        else:
            level = _Relaid.apply(level, memory_format)  # type: ignore[no-untyped-call]
        weight, dtype = getattr(norm, "weight", None), level.dtype
        if weight is not None and torch.promote_types(weight.dtype, dtype) != weight.dtype:
            level = level.to(weight.dtype)  # a map of products that are wider than the model
        normalized: Tensor = norm(level).to(dtype)
        return normalized.relu_() if relu else normalized
    assert isinstance(norm, nn.BatchNorm2d)
    compute = torch.promote_types(level.dtype, torch.float32)
    has_planes = memory_format != torch.channels_last
    out, mean, variance = batch_norm(
        map_to_tokens(level),
        norm.weight.to(compute),
        norm.bias.to(compute),
        norm.eps,
        has_relu=relu,
        has_planes=has_planes,
    )
    _update_statistics(norm, mean, variance, level.numel() // level.shape[1])
    hw = level.shape[2:]
    return torch.unflatten(out, 2, hw) if has_planes else tokens_to_map(out, (hw[0], hw[1]))


def _runs_here(norm: nn.Module, level: Tensor) -> bool:
    """Return whether our batch norm runs: it changes the layout on the way, and keeps no ReLU."""
    return (
        not tensors.is_recorded()
        and tensors.is_on_cpu(level)
        and type(norm) is nn.BatchNorm2d
        and norm.training
        and level.numel() > level.shape[1]  # of a single number torch says that it has no variance
        and unavailable_reason() is None
    )


def _update_statistics(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, count: int) -> None:
    if not norm.track_running_stats:
        return
    assert norm.running_mean is not None and norm.running_var is not None
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    momentum = norm.momentum
    if momentum is None:
        momentum = 1.0 / norm.num_batches_tracked.item()
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), momentum)
    unbiased = variance * (count / (count - 1))
    norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), momentum)


class _Relaid(torch.autograd.Function):
    """From channels last to another layout; the gradient comes back as channels last.

    Before the norm, so that its gradient is of the layout that comes in, and changed once for all
    who read it.
    """

    @staticmethod
    def forward(ctx: Any, level: Tensor, memory_format: torch.memory_format) -> Tensor:
        relaid = level.contiguous(memory_format=memory_format)
        return relaid.view_as(relaid) if relaid is level else relaid

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.contiguous(memory_format=torch.channels_last), None
