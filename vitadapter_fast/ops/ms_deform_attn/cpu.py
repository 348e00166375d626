# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The C++ kernels for CPU tensors: csrc/ms_deform_attn/{forward,backward}_cpu.cpp."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...native import extension, tensors
from ...native.tensors import dense_rows
from ._call import Call, dense, new_outputs
from ._pointers import arguments


def unsupported_reason(call: Call) -> str | None:
    """Return why the CPU kernels cannot run this call, or None."""
    if not tensors.is_on_cpu(call.value):
        return f"it runs on CPU tensors, got {call.value.device}"
    return extension.unavailable_reason()


def forward(call: Call) -> Tensor:
    """Return the attended features, [B, Q, M * D] in the dtype of the value."""
    out = new_outputs(call)
    call = dense(call)
    extension.launch(
        "ms_deform_attn_forward_cpu",
        **arguments(call),
        num_threads=torch.get_num_threads(),
        out=extension.in_huge_pages(out),
    )
    return out


def backward(call: Call, grad_out: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
    """Return the gradients of value, points and weights; None where ``needs`` says so."""
    tensors = (call.value, call.points, call.weights)
    grads = [
        torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu") if need else None
        for tensor, need in zip(tensors, needs, strict=True)
    ]
    call, grad_out = dense(call), dense_rows(grad_out)
    extension.launch(
        "ms_deform_attn_backward_cpu",
        **arguments(call),
        num_threads=torch.get_num_threads(),
        grad_out=grad_out,
        grad_out_strides=grad_out.stride()[:2],
        grad_value=extension.in_huge_pages(grads[0]),
        grad_points=extension.in_huge_pages(grads[1]),
        grad_weights=extension.in_huge_pages(grads[2]),
    )
    return grads
