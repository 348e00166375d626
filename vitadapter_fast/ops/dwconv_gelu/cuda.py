# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels: csrc/dwconv_gelu/{forward,backward}_cuda.cu."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...native import cuda_device, extension
from ...native.tensors import current_device, dense_rows
from .. import _cuda
from .._arguments import pairs
from ._call import Call, dense, new_outputs, split_sums
from ._pointers import arguments

_MAX_GRIDS = 16  # kMaxGrids of rows_cuda.cuh
_MAX_INT32 = 2**31 - 1
_TILE_H, _TILE_W = 16, 32  # kWeightRows and kWeightColumns of params.h


def unsupported_reason(call: Call) -> str | None:
    """Return why the CUDA kernels cannot run this call, or None."""
    if (reason := _cuda.unsupported_reason(call.tokens)) is not None:
        return reason
    return size_reason(call)


def size_reason(call: Call) -> str | None:
    """Return why a call is too large for the kernels' 32-bit indices, or None."""
    if len(call.grid_hw) > 2 * _MAX_GRIDS:
        return f"it takes at most {_MAX_GRIDS} grids"
    _, N, C = call.tokens.shape
    if N * C > _MAX_INT32:
        return f"it takes at most {_MAX_INT32} elements in an image, got {N * C}"
    return None


def forward(call: Call) -> Tensor:
    """Return GELU of the convolved tokens, [B, N, C] in their dtype."""
    out = new_outputs(call)
    call = dense(call)
    with current_device(out):
        extension.launch(
            "dwconv_gelu_forward_cuda",
            **arguments(call),
            **cuda_device.device_and_stream(out),
            out=out,
        )
    return out


def backward(call: Call, grad_out: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
    """Return the gradients of tokens, weight and bias; None where ``needs`` says so."""
    B, _, C = call.tokens.shape
    call, grad_out = dense(call), dense_rows(grad_out)
    grad_sum = call.tokens.new_empty(call.tokens.shape)
    grad_tokens = torch.empty_like(grad_sum) if needs[0] else None
    partial = None
    if needs[1] or needs[2]:
        compute = torch.promote_types(call.tokens.dtype, torch.float32)
        partial = call.tokens.new_empty(B * _num_tiles(call), 10, C, dtype=compute)
    with current_device(grad_out):
        extension.launch(
            "dwconv_gelu_backward_cuda",
            **arguments(call),
            **cuda_device.device_and_stream(grad_out),
            grad_out=grad_out,
            grad_out_strides=grad_out.stride()[:2],
            grad_sum=grad_sum,
            grad_tokens=grad_tokens,
            partial_sums=partial,
            tiles=0 if partial is None else partial.shape[0],
        )
    return [grad_tokens, *split_sums(call, partial, needs)]


def _num_tiles(call: Call) -> int:
    # -(-a // b) is the ceiling of a / b.
    return sum(-(-h // _TILE_H) * -(-w // _TILE_W) for h, w in pairs(call.grid_hw))
