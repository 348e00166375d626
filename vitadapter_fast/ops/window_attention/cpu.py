# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The C++ kernels for CPU tensors: csrc/window_attention/{forward,backward}_cpu.cpp."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...native import extension, tensors
from ...native.tensors import dense_rows
from ._call import Call, new_outputs


def unsupported_reason(call: Call) -> str | None:
    """Return why the CPU kernels cannot run this call, or None."""
    if not tensors.is_on_cpu(call.qkv):
        return f"it runs on CPU tensors, got {call.qkv.device}"
    return extension.unavailable_reason()


def forward(call: Call) -> tuple[Tensor, Tensor]:
    """Return the attended tokens, [B, h * w, M * D], and logsumexp of the logits, [B, h * w, M]."""
    out, logsumexp = new_outputs(call)
    qkv = dense_rows(call.qkv)
    extension.launch(
        "window_attention_forward_cpu",
        **_arguments(call, qkv),
        out=extension.in_huge_pages(out),
        logsumexp=logsumexp,
    )
    return out, logsumexp


def backward(
    call: Call, grad_out: Tensor, needs: Sequence[bool], out: Tensor, logsumexp: Tensor
) -> list[Tensor | None]:
    """Return the gradient of qkv, [B, h * w, 3, M, D]."""
    qkv, grad_out = dense_rows(call.qkv), dense_rows(grad_out)
    logsumexp = logsumexp.contiguous()
    grad_qkv = torch.empty(qkv.shape, dtype=qkv.dtype, device="cpu")
    extension.launch(
        "window_attention_backward_cpu",
        **_arguments(call, qkv),
        logsumexp=logsumexp,
        grad_out=grad_out,
        grad_out_strides=grad_out.stride()[:2],
        grad_qkv=extension.in_huge_pages(grad_qkv),
    )
    return [grad_qkv]


def _arguments(call: Call, qkv: Tensor) -> dict[str, Any]:
    B, _, _, M, D = qkv.shape
    return {
        "qkv": qkv,
        "dtype": extension.DTYPE_CODES[qkv.dtype],
        "qkv_strides": qkv.stride()[:2],
        "batch": B,
        "heads": M,
        "channels": D,
        "hw": tuple(call.hw),
        "window_size": int(call.window_size),
        "num_threads": torch.get_num_threads(),
    }
