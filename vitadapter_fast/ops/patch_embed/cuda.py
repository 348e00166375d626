# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""CUDA tensors: csrc/patch_embed/columns_cuda.cu, torch's GEMM, then resize_add_cuda.cu.

Three launches rather than one fused kernel: the GEMM is cuBLAS at its best in every dtype and on
every device, and what the two others move, 13 MB + 9 MB in bfloat16 for S at 1024 x 1024, passes
at HBM speed in 8 us and mostly stays in the L2 cache of an H100 (arithmetic, not measured).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...native import cuda_device, extension, tensors
from .. import _cuda
from . import _parts
from ._call import Call

_LAUNCHER = "patch_embed_resize_add_cuda"


def unsupported_reason(call: Call) -> str | None:
    """Return why the CUDA kernels cannot run this call, or None."""
    if (reason := _cuda.unsupported_reason(call.image)) is not None:
        return reason
    return _parts.size_reason(call)


def forward(call: Call) -> Tensor:
    """Return the tokens, [B, h * w, C] in the promoted dtype of image and table."""
    with tensors.current_device(call.image):
        tokens = torch.mm(_columns(call), _parts.kernel_matrix(call).t())
        return _parts.add_positions(
            _LAUNCHER, call, tokens, **cuda_device.device_and_stream(call.image)
        )


def backward(call: Call, grad_out: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
    """Return the gradients of image, weight, bias and table; None where ``needs`` says so."""
    with tensors.current_device(call.image):
        return _parts.gradients(call, grad_out, needs, _columns, _table_gradient)


def _columns(call: Call) -> Tensor:
    image = call.image
    B, in_chans = image.shape[:2]
    h, w = call.grid_hw
    patch_h, patch_w = call.weight.shape[2:]
    columns = image.new_empty(B * h * w, in_chans * patch_h * patch_w)
    extension.launch(
        "patch_embed_columns_cuda",
        image=image,
        strides=image.stride(),
        columns=columns,
        batch=B,
        in_chans=in_chans,
        grid_hw=(h, w),
        patch_hw=(patch_h, patch_w),
        element_bytes=image.element_size(),
        **cuda_device.device_and_stream(image),
    )
    return columns


def _table_gradient(call: Call, grad_out: Tensor) -> Tensor:
    return _parts.table_gradient(
        _LAUNCHER, call, grad_out, **cuda_device.device_and_stream(call.image)
    )
