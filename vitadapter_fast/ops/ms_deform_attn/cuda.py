# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels: csrc/ms_deform_attn/{forward,backward,gather}_cuda.cu."""

from collections.abc import Sequence
from functools import cache
from itertools import product
from typing import Any

import torch
from torch import Tensor

from ...native import cuda_device, extension
from ...native.tensors import current_device, dense_rows
from .. import _cuda
from . import _value_gradient
from ._call import Call, dense, new_outputs, size_reason
from ._pointers import arguments
from ._value_gradient import Bins


def unsupported_reason(call: Call) -> str | None:
    """Return why the CUDA kernels cannot run this call, or None."""
    if (reason := _cuda.unsupported_reason(call.value)) is not None:
        return reason
    return size_reason(call)


def generic_reason(call: Call, *, is_backward: bool = False) -> str | None:
    """Return why no specialized kernel takes this call, or None.

    The generic ones compute the coordinates of a point anew for each channel: 195 instructions for
    a point and channel (sm_90, bf16) where Triton's kernels take 72 for a query and head.
    """
    value, points, weights = call.value, call.points, call.weights
    # Ints: under a compiler sizes may be symbols.
    channels, num_points = int(value.shape[3]), int(points.shape[4])
    levels = len(call.level_hw) // 2
    kinds = _specialized()
    if (channels, levels) not in kinds["shapes"] or num_points != kinds["points"]:
        return (
            "no specialized CUDA kernel takes heads of "
            f"{channels} channels with {levels} levels of {num_points} points"
        )
    dtype = value.dtype
    points_dtype = dtype if call.query_hw else torch.float32
    if dtype == torch.float64 or points.dtype != points_dtype or weights.dtype != dtype:
        return (
            "no specialized CUDA kernel takes a value, points and weights of "
            f"{dtype}, {points.dtype} and {weights.dtype}"
        )
    if is_backward and (dtype.itemsize, channels, levels) in kinds["generic_backward"]:
        return (
            f"no specialized CUDA backward takes {dtype} heads of {channels} channels with "
            f"{levels} levels"
        )
    if not (_is_aligned(value, 16) and _is_aligned(points, 2 * points.element_size())):
        return "no specialized CUDA kernel takes values or points that are not aligned"
    return None


@cache
def _specialized() -> dict[str, Any]:
    """Return what csrc/common/dispatch.h names, as the extension was built."""
    info = extension.build_info()
    return {
        "shapes": set(product(info.get("head_channels", ()), info.get("levels", ()))),
        "points": info.get("points"),
        "generic_backward": set(info.get("generic_backward", ())),
    }


def _is_aligned(tensor: Tensor, nbytes: int) -> bool:
    """Return whether rows begin at multiples of ``nbytes``, as vector reads want it."""
    element = tensor.element_size()
    if any(stride * element % nbytes for stride in tensor.stride()[:2]):
        return False
    # What compilers trace has no address, and stands for what comes from torch's allocator.
    return type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.data_ptr() % nbytes == 0


def forward(call: Call) -> Tensor:
    """Return the attended features, [B, Q, M * D] in the dtype of the value."""
    out = new_outputs(call)
    call = dense(call)
    with current_device(out):
        extension.launch(
            "ms_deform_attn_forward_cuda",
            **arguments(call),
            **cuda_device.device_and_stream(out),
            out=out,
        )
    return out


def backward(call: Call, grad_out: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
    """Return the gradients of value, points and weights; None where ``needs`` says so."""
    with current_device(grad_out):
        call = dense(call)
        return _value_gradient.backward(call, needs, _Kernels(call, dense_rows(grad_out)))


class _Kernels:
    def __init__(self, call: Call, grad_out: Tensor) -> None:
        self._held = call, grad_out
        self._common = {
            **arguments(call),
            **cuda_device.device_and_stream(grad_out),
            "grad_out": grad_out,
            "grad_out_strides": grad_out.stride()[:2],
        }

    def differentiate(
        self,
        grad_points: Tensor | None,
        grad_weights: Tensor | None,
        total: Tensor | None,
        bins: Bins | None,
    ) -> None:
        extension.launch(
            "ms_deform_attn_points_backward_cuda",
            **self._common,
            grad_points=grad_points,
            grad_weights=grad_weights,
            grad_value=total,
            sums_by_records=total is None,
            **(_addresses(bins) if bins else {}),
        )

    def place(self, bins: Bins) -> None:
        extension.launch("ms_deform_attn_place_cuda", **self._common, **_addresses(bins))

    def gather(self, bins: Bins, grad_value: Tensor) -> None:
        extension.launch(
            "ms_deform_attn_gather_cuda",
            **self._common,
            **_addresses(bins),
            grad_value=grad_value,
        )


def _addresses(bins: Bins) -> dict[str, Any]:
    return {name: tensor for name, tensor in vars(bins).items()}
