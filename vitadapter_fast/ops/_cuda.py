# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A tensor in; why the extension's CUDA kernels cannot run on its device out, told once."""

import logging
from functools import cache

import torch
from torch import Tensor

from ..native import cuda_device, extension, tensors
from . import _triton
from ._backends import requested

_log = logging.getLogger("vitadapter_fast")


def unsupported_reason(tensor: Tensor) -> str | None:
    """Return why the extension's CUDA kernels cannot run on the device of this tensor, or None."""
    # Before anything asks for a driver: its start takes time, and children forked after it cannot
    # use a GPU.
    if tensors.device_type(tensor) != "cuda":
        return f"it runs on CUDA tensors, got {tensor.device}"
    reason = cuda_device.cuda_unavailable_reason()
    reason = reason or cuda_device.no_code_reason(tensor.device)
    if reason is not None and _is_news():
        _warn_once(reason)
    return reason


def _is_news() -> bool:
    # ROCm has no other kernels, who names a backend chose it, extension.load tells of a missing
    # extension, and compilers trace tensors on devices that are not here.
    return (
        torch.version.hip is None
        and requested(None) is None
        and extension.unavailable_reason() is None
        and torch.cuda.is_available()
    )


@cache
def _warn_once(reason: str) -> None:
    # All works, but slower, and nothing else would show it: more than DEBUG.
    instead = "plain PyTorch" if _triton.unavailable_reason() else "Triton"
    _log.warning("the CUDA kernels do not run here, %s does instead: %s", instead, reason)
