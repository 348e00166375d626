# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Tokens in, rounded and multiplied with a rounded weight out. The definition."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ...native import tensors
from ._call import Call


def unsupported_reason(call: Call) -> str | None:
    """Return None: plain PyTorch runs everywhere."""
    return None


def forward(call: Call) -> Tensor:
    """Return the projected tokens, [..., C]."""
    x, weight, scales, bias, plus, has_gelu = call
    compute = torch.promote_types(x.dtype, torch.float32)
    x = x.to(compute)
    rounded = _rounded(F.gelu(x) if has_gelu else x).to(compute)
    matrix = _matrix(weight, scales, compute)[:, : x.shape[-1]]
    with tensors.without_autocast(x.device.type):
        out = F.linear(rounded, matrix, None if bias is None else bias.to(compute))
    return (out if plus is None else out + plus).to(call.x.dtype)


def backward(call: Call, grad_out: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
    """Return gradients of x and plus; between them None for weight, scales and bias."""
    x, weight, scales, _, _, has_gelu = call
    compute = torch.promote_types(x.dtype, torch.float32)
    grad = None
    if needs[0]:
        with tensors.without_autocast(x.device.type):
            grad = grad_out.to(compute) @ _matrix(weight, scales, compute)[:, : x.shape[-1]]
        if has_gelu:
            grad = torch.ops.aten.gelu_backward(grad, x.to(compute))
        grad = grad.to(x.dtype)
    return [grad, None, None, None, grad_out.clone() if needs[4] else None]


def _matrix(weight: Tensor, scales: Tensor, compute: torch.dtype) -> Tensor:
    """Return what the weight stands for, [C, at least K]."""
    steps = weight.transpose(1, 2).flatten(0, 1).flatten(1)[: scales.shape[0]]
    return scales.to(compute)[:, None] * steps.to(compute)


def _rounded(x: Tensor) -> Tensor:
    """Round each row to 256 steps between its least and its largest number, of which 0 is one."""
    x = x.float()
    low, high = x.amin(-1, keepdim=True).clamp(max=0), x.amax(-1, keepdim=True).clamp(min=0)
    step = high / 255 - low / 255
    # A step whose inverse would overflow is none.
    inverse = torch.where(step < torch.finfo(torch.float32).tiny, 0.0, 1 / step)
    zero = torch.round(-low * inverse)
    return (torch.clamp(torch.round(x * inverse) + zero, 0, 255) - zero) * step
