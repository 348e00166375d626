# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Tokens in; normalized tokens or planes, mean and variance out. The definition, in PyTorch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .._recording import recording
from ._call import Call


def unsupported_reason(call: Call) -> str | None:
    """Return None: plain PyTorch runs everywhere."""
    return None


def forward(call: Call) -> tuple[Tensor, Tensor, Tensor]:
    """Return the result, [B, N, C] or [B, C, N], mean and variance, [C] each."""
    return _normalize(call)


def backward(
    call: Call, grad_out: Tensor, needs: Sequence[bool], mean: Tensor, variance: Tensor
) -> list[Tensor | None]:
    """Return the gradients of tokens, weight and bias: all of them, in one pass."""
    leaves = [tensor.detach().requires_grad_() for tensor in call[:3]]
    with recording():
        out, _, _ = _normalize(call._replace(tokens=leaves[0], weight=leaves[1], bias=leaves[2]))
    tokens, weight, bias = torch.autograd.grad(out, leaves, grad_out)
    return [tokens.contiguous(), weight, bias]  # as the fake promises


def _normalize(call: Call) -> tuple[Tensor, Tensor, Tensor]:
    tokens = call.tokens.to(call.weight.dtype)  # 16-bit tokens are rounded once, at the end
    variance, mean = torch.var_mean(tokens, dim=(0, 1), correction=0)
    out = (tokens - mean) * (call.weight * torch.rsqrt(variance + call.eps)) + call.bias
    out = out.relu() if call.has_relu else out
    out = out.transpose(1, 2) if call.has_planes else out
    return out.to(call.tokens.dtype).contiguous(), mean.detach(), variance.detach()
