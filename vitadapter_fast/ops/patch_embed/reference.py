# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Image, patch kernel and position table in; tokens out. The definition, in plain PyTorch."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .._recording import recording
from ._call import Call


def unsupported_reason(call: Call) -> str | None:
    """Return None: plain PyTorch runs everywhere."""
    return None


def forward(call: Call) -> Tensor:
    """Return the tokens, [B, h * w, C] in the promoted dtype of image and table."""
    return _embed(call.image, call.weight, call.bias, call.pos_embed, call)


def backward(call: Call, grad_out: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
    """Return the gradients of image, weight, bias and table; None where ``needs`` says so."""
    leaves = [
        None if tensor is None else tensor.detach().requires_grad_(need)
        for tensor, need in zip(call[:4], needs, strict=True)
    ]
    image, weight, bias, pos_embed = leaves
    assert image is not None and weight is not None and pos_embed is not None
    with recording():
        out = _embed(image, weight, bias, pos_embed, call)
    wanted = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
    grads = iter(torch.autograd.grad(out, wanted, grad_out) if wanted else ())
    return [next(grads) if leaf is not None and leaf.requires_grad else None for leaf in leaves]


def _embed(
    image: Tensor, weight: Tensor, bias: Tensor | None, pos_embed: Tensor, call: Call
) -> Tensor:
    tokens = F.conv2d(image, weight, bias, stride=weight.shape[2:]).flatten(2).transpose(1, 2)
    positions = resize_positions(
        pos_embed, (call.pos_hw[0], call.pos_hw[1]), call.grid_hw, call.mode
    )
    return (tokens + positions).contiguous()


def resize_positions(
    pos_embed: Tensor, pos_hw: tuple[int, int], grid_hw: tuple[int, int], mode: str
) -> Tensor:
    """Return the table at the token grid, [h * w, C] in its own dtype; arguments as for the op."""
    if pos_hw == grid_hw:
        return pos_embed
    compute = torch.promote_types(pos_embed.dtype, torch.float32)
    C = pos_embed.shape[1]
    table = pos_embed.to(compute).view(1, *pos_hw, C).permute(0, 3, 1, 2)
    if mode == "bicubic_offset":
        # DINOv2 adds 0.1 to the grid so that float rounding cannot lose a row; checkpoints saw it.
        scale = [(size + 0.1) / old for size, old in zip(grid_hw, pos_hw, strict=True)]
        resized = F.interpolate(table, scale_factor=scale, mode="bicubic")
    else:
        # With antialias torch (2.13) resizes one column wrongly unless the map is channels last,
        # which a single channel is not: so twice the channels.
        is_antialiased = mode == "bicubic_antialias"
        table = torch.cat((table, table), 1) if is_antialiased else table
        table = table.contiguous(memory_format=torch.channels_last)
        resized = F.interpolate(table, size=grid_hw, mode="bicubic", antialias=is_antialiased)
    return resized.flatten(2)[0, :C].T.to(pos_embed.dtype)
