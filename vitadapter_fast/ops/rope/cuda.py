# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernel: csrc/rope/rope_cuda.cu."""

from torch import Tensor

from ...native import cuda_device, extension
from ...native.tensors import current_device, dense_rows
from .. import _cuda
from ._call import Call, new_outputs
from ._pointers import arguments

_MAX_INT32 = 2**31 - 1


def unsupported_reason(call: Call) -> str | None:
    """Return why the CUDA kernel cannot run this call, or None."""
    if (reason := _cuda.unsupported_reason(call.qkv)) is not None:
        return reason
    return size_reason(call)


def size_reason(call: Call) -> str | None:
    """Return why a call is too large for the kernel's 32-bit indices, or None."""
    _, N, _, M, D = call.qkv.shape
    if 3 * N * M * D > _MAX_INT32:
        return f"it takes at most {_MAX_INT32} elements in an image, got {3 * N * M * D}"
    return None


def forward(call: Call) -> Tensor:
    """Return queries, keys and values, [B, N, 3, M, D], of which the first two are rotated."""
    return _run(call._replace(qkv=dense_rows(call.qkv)), new_outputs(call))


def rotate_in_place(call: Call) -> None:
    """Rotate queries and keys, dense from their third dimension on, where they lie."""
    _run(call, call.qkv)


def _run(call: Call, out: Tensor) -> Tensor:
    with current_device(out):
        extension.launch("rope_cuda", **arguments(call, out), **cuda_device.device_and_stream(out))
    return out
