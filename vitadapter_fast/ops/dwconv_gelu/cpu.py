# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The C++ kernels for CPU tensors: csrc/dwconv_gelu/{forward,backward}_cpu.cpp."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...native import extension, tensors
from ...native.tensors import dense_rows
from ._call import Call, dense, new_outputs
from ._pointers import arguments


def unsupported_reason(call: Call) -> str | None:
    """Return why the CPU kernels cannot run this call, or None."""
    if not tensors.is_on_cpu(call.tokens):
        return f"it runs on CPU tensors, got {call.tokens.device}"
    return extension.unavailable_reason()


def forward(call: Call) -> Tensor:
    """Return GELU of the convolved tokens, [B, N, C] in their dtype."""
    out = new_outputs(call)
    call = dense(call)
    extension.launch(
        "dwconv_gelu_forward_cpu",
        **arguments(call),
        num_threads=torch.get_num_threads(),
        out=extension.in_huge_pages(out),
    )
    return out


def backward(call: Call, grad_out: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
    """Return the gradients of tokens, weight and bias; None where ``needs`` says so."""
    grads = [
        torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
        if need and tensor is not None
        else None
        for tensor, need in zip((call.tokens, call.weight, call.bias), needs, strict=True)
    ]
    call, grad_out = dense(call), dense_rows(grad_out)
    extension.launch(
        "dwconv_gelu_backward_cpu",
        **arguments(call),
        num_threads=torch.get_num_threads(),
        grad_out=grad_out,
        grad_out_strides=grad_out.stride()[:2],
        grad_tokens=extension.in_huge_pages(grads[0]),
        grad_weight=extension.in_huge_pages(grads[1]),
        grad_bias=extension.in_huge_pages(grads[2]),
    )
    return grads
