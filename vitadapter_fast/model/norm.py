# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The name of a normalization in, its layer out: one choice for the whole adapter."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, distributed, nn

from .plain import is_plain

NORMS = ("auto", "BN", "SyncBN", "GN")


def make_norm(kind: str, channels: int) -> nn.Module:
    """Return the normalization of maps [B, ``channels``, h, w].

    Args:
        kind: "BN", "SyncBN", "GN" (32 groups, or the largest divisor of ``channels`` below), or
            "auto": SyncBN if a process group on CUDA (nccl) is initialized by now, else BN.
        channels: Channels of the map.

    Raises:
        ValueError: ``kind`` is none of these.
    """
    if kind == "auto":
        kind = "SyncBN" if _cuda_process_group_exists() else "BN"
    if kind == "BN":
        return nn.BatchNorm2d(channels)
    if kind == "SyncBN":
        return nn.SyncBatchNorm(channels)
    if kind == "GN":
        groups = max(count for count in range(1, 33) if channels % count == 0)
        return nn.GroupNorm(groups, channels)
    raise ValueError(f"make_norm: kind must be one of {', '.join(NORMS)}, got {kind!r}")


def is_constant(norm: nn.Module) -> bool:
    """Return whether ``norm`` is a batch norm that scales and shifts by its running statistics."""
    return (
        is_plain(norm, nn.BatchNorm2d, nn.SyncBatchNorm)
        and not norm.training
        and isinstance(norm.running_var, Tensor)
    )


def as_affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return scale and shift, [C] each, of a norm that ``is_constant``."""
    assert isinstance(norm, (nn.BatchNorm2d, nn.SyncBatchNorm))
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return scale, norm.bias - norm.running_mean * scale


@contextmanager
def keep_statistics(module: nn.Module) -> Iterator[None]:
    """Let the batch norms of ``module`` normalize without updating their running statistics.

    For a forward pass that repeats one, as checkpointing does.
    """
    norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    updating = [norm for norm in norms if norm.track_running_stats and norm.training]
    momenta = [norm.momentum for norm in updating]
    # Without tracking they would keep fewer tensors than at first, which checkpointing refuses.
    for norm in updating:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(updating, momenta, strict=True):
            norm.momentum = momentum
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.sub_(1)


def _cuda_process_group_exists() -> bool:
    """SyncBatchNorm refuses CPU tensors once any group exists, so gloo alone does not count."""
    return (
        torch.cuda.is_available()
        and distributed.is_available()
        and distributed.is_initialized()
        and "nccl" in distributed.get_backend_config()
    )
