# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The C++ kernels for CPU tensors: csrc/window_attention/{forward,backward}_cpu.cpp."""

from typing import Any

import torch
from torch import Tensor

from .. import _native, _tensors
from .._tensors import dense_rows, row_strides
from ._call import Call, new_outputs


def unsupported_reason(call: Call) -> str | None:
    """Return why the CPU kernels cannot run this call, or None."""
    if not _tensors.is_on_cpu(call.qkv):
        return f"it runs on CPU tensors, got {call.qkv.device}"
    return _native.unavailable_reason()


def forward(call: Call) -> tuple[Tensor, Tensor]:
    """Return the attended tokens, [B, h * w, M * D], and logsumexp of the logits, [B, h * w, M]."""
    out, logsumexp = new_outputs(call)
    qkv = dense_rows(call.qkv)
    _native.launch(
        "window_attention_forward_cpu",
        **_arguments(call, qkv),
        out=_native.output_address(out),
        logsumexp=_native.address(logsumexp),
    )
    return out, logsumexp


def backward(call: Call, grad_out: Tensor, out: Tensor, logsumexp: Tensor) -> Tensor:
    """Return the gradient of qkv, [B, h * w, 3, M, D]."""
    qkv, grad_out = dense_rows(call.qkv), dense_rows(grad_out)
    logsumexp = logsumexp.contiguous()
    grad_qkv = torch.empty(qkv.shape, dtype=qkv.dtype, device="cpu")
    _native.launch(
        "window_attention_backward_cpu",
        **_arguments(call, qkv),
        logsumexp=_native.address(logsumexp),
        grad_out=_native.address(grad_out),
        grad_out_strides=row_strides(grad_out),
        grad_qkv=_native.output_address(grad_qkv),
    )
    return grad_qkv


def _arguments(call: Call, qkv: Tensor) -> dict[str, Any]:
    B, _, _, M, D = qkv.shape
    return {
        "qkv": _native.address(qkv),
        "dtype": _native.dtype_code(qkv),
        "qkv_strides": row_strides(qkv),
        "batch": B,
        "heads": M,
        "channels": D,
        "hw": tuple(_native.flat(call.hw)),
        "window_size": int(call.window_size),
        "num_threads": _native.num_threads(),
    }
