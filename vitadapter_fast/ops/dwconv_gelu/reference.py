# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Tokens of several grids in; convolved tokens after GELU out. The definition, in plain PyTorch."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .._arguments import pairs
from .._recording import recording
from ._call import Call


def unsupported_reason(call: Call) -> str | None:
    """Return None: plain PyTorch runs everywhere."""
    return None


def forward(call: Call) -> Tensor:
    """Return GELU of the convolved tokens, [B, N, C] in their dtype."""
    return _convolve(call.tokens, call.weight, call.bias, call.grid_hw)


def backward(call: Call, grad_out: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
    """Return the gradients of tokens, weight and bias; None where ``needs`` says so."""
    leaves = [
        None if tensor is None else tensor.detach().requires_grad_(need)
        for tensor, need in zip((call.tokens, call.weight, call.bias), needs, strict=True)
    ]
    tokens, weight, bias = leaves
    assert tokens is not None and weight is not None
    with recording():
        out = _convolve(tokens, weight, bias, call.grid_hw)
    wanted = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
    grads = iter(torch.autograd.grad(out, wanted, grad_out) if wanted else ())
    return [next(grads) if leaf is not None and leaf.requires_grad else None for leaf in leaves]


def _convolve(tokens: Tensor, weight: Tensor, bias: Tensor | None, grid_hw: list[int]) -> Tensor:
    # 16-bit inputs are computed in float32 and rounded once.
    compute = torch.promote_types(tokens.dtype, torch.float32)
    weight, bias = weight.to(compute), None if bias is None else bias.to(compute)
    B, _, C = tokens.shape
    grids = pairs(grid_hw)
    outs = []
    for grid, (h, w) in zip(
        torch.split(tokens.to(compute), [h * w for h, w in grids], dim=1), grids, strict=True
    ):
        image = grid.transpose(1, 2).reshape(B, C, h, w)
        outs.append(F.conv2d(image, weight, bias, padding=1, groups=C).flatten(2).transpose(1, 2))
    return F.gelu(torch.cat(outs, dim=1)).to(tokens.dtype).contiguous()
