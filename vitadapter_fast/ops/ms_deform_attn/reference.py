# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Maps, points and weights in; weighted bilinear samples out. The definition, in plain PyTorch."""

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
    """Return the attended features, [B, Q, M * D] in the dtype of the value."""
    return _attend(call.value, call.points, call.weights, call)


def backward(call: Call, grad_out: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
    """Return the gradients of value, points and weights; None where ``needs`` says so."""
    leaves = [
        tensor.detach().requires_grad_(need)
        for tensor, need in zip((call.value, call.points, call.weights), needs, strict=True)
    ]
    with recording():
        value, points, weights = leaves
        out = _attend(value, points, weights, call)
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    grads = iter(torch.autograd.grad(out, wanted, grad_out) if wanted else ())
    return [next(grads) if leaf.requires_grad else None for leaf in leaves]


def _attend(value: Tensor, points: Tensor, weights: Tensor, call: Call) -> Tensor:
    # 16-bit inputs are computed in float32: a bfloat16 coordinate is up to half a pixel off.
    compute = torch.promote_types(value.dtype, torch.float32)
    B, Q, M, L, P, _ = points.shape
    D = value.shape[3]
    points = points.to(compute)
    weights = weights.to(compute)
    if call.query_hw:
        weights = weights.reshape(B, Q, M, L * P).softmax(-1).view(B, Q, M, L, P)
    out = value.new_zeros(B * M, D, Q, dtype=compute)
    levels = pairs(call.level_hw)
    maps = torch.split(value.to(compute), [h * w for h, w in levels], dim=1)
    for level, (h, w) in enumerate(levels):
        size = points.new_tensor([w, h])
        if call.query_hw:
            centers = query_centers(pairs(call.query_hw), points)  # [Q, 2] in [0, 1]
            pixels = centers[:, None, None] * size - 0.5 + points[:, :, :, level]
        else:
            pixels = points[:, :, :, level] * size - 0.5  # [B, Q, M, P, 2]
        # NaN, infinite and far points read zero, and never reach grid_sample's integer conversion.
        inside = ((pixels > -1) & (pixels < size)).all(-1)  # [B, Q, M, P]
        pixels = torch.where(inside[..., None], pixels, -1.0)
        grid = ((2 * pixels + 1) / size - 1).transpose(1, 2).reshape(B * M, Q, P, 2)
        image = maps[level].permute(0, 2, 3, 1).reshape(B * M, D, h, w)
        samples = F.grid_sample(image, grid, align_corners=False)  # [B * M, D, Q, P]
        share = torch.where(inside, weights[:, :, :, level], 0.0)
        out = out + (samples * share.transpose(1, 2).reshape(B * M, 1, Q, P)).sum(-1)
    return out.view(B, M * D, Q).transpose(1, 2).to(value.dtype).contiguous()


def query_centers(query_hw: Sequence[tuple[int, int]], like: Tensor) -> Tensor:
    """Return where the queries of regular grids lie, [Q, 2] as (x, y) in [0, 1]; dtype ``like``."""
    centers = []
    for h, w in query_hw:
        y = (torch.arange(h, device=like.device, dtype=like.dtype) + 0.5) / h
        x = (torch.arange(w, device=like.device, dtype=like.dtype) + 0.5) / w
        centers.append(torch.stack((x.expand(h, w), y[:, None].expand(h, w)), -1).view(-1, 2))
    return torch.cat(centers)
