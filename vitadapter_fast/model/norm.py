# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The name of a normalization in, its layer out: one choice for the whole adapter."""

import torch
from torch import distributed, nn

from .. import fused

LAYER_NORM_EPS = 1e-6  # of the adapter
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
        return fused.GroupNorm(groups, channels)
    raise ValueError(f"make_norm: kind must be one of {', '.join(NORMS)}, got {kind!r}")


def _cuda_process_group_exists() -> bool:
    """SyncBatchNorm refuses CPU tensors once any group exists, so gloo alone does not count."""
    return (
        torch.cuda.is_available()
        and distributed.is_available()
        and distributed.is_initialized()
        and "nccl" in distributed.get_backend_config()
    )
