# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""How kernels read tensors: rows where they lie, strides, the right device current."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor


def device_type(tensor: Tensor) -> str:
    """Return "cpu", "cuda" or another type of device.

    Whatever chooses by it asks here, so that the path of GPUs can be taken without one; whatever
    then calls torch.cuda asks the tensor.
    """
    return tensor.device.type


# Whether shortcuts that only pay on the CPU may be taken; asked so often that it is torch's C code,
# which compilers know.
is_on_cpu: Callable[[Tensor], bool] = cast(Any, Tensor.is_cpu).__get__


def is_recorded() -> bool:
    """Return whether a compiler or tracer records what runs, to fuse or export it."""
    return torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None


def without_autocast(device: str = "cpu") -> AbstractContextManager[object]:
    """Switch the autocast of a type of device off in the block."""
    is_on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if is_on else nullcontext()


def dense_rows(tensor: Tensor) -> Tensor:
    """Return the tensor, copied only if it is not dense from its third dimension on.

    Kernels take any stride in the first two dimensions, so slices of a wider projection are read in
    place. The caller must hold the result until the launch returns.
    """
    # The first question is a quarter of the second's price.
    if tensor.is_contiguous() or tensor[:1, :1].is_contiguous():
        return tensor
    return tensor.contiguous()


def current_device(tensor: Tensor) -> AbstractContextManager[object]:
    """Make the tensor's device current in the block.

    By torch, which restores the device before without giving it a context it did not have.
    """
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
