# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Prior tokens, the map at 1/4 and ViT maps in; four feature maps at 1/4 to 1/32 out."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .grid import Grids, split_prior, tokens_to_map
from .norm import as_affine, is_constant


def feature_pyramid(
    c: Tensor,
    map_4: Tensor,
    vit_tokens: Sequence[Tensor],
    grids: Grids,
    up: nn.Module,
    norms: Sequence[nn.Module],
    memory_format: torch.memory_format,
) -> list[Tensor]:
    """Lay the prior tokens out as maps, add the ViT's to them and normalize.

    A function, because upstream keeps ``up`` and the norms at the top of its parameter names.

    Args:
        c: Prior tokens, [B, Q, C].
        map_4: The prior's map at 1/4, [B, C, H / 4, W / 4].
        vit_tokens: ViT tokens [B, h * w, C]: four for the four maps, one for all of them, or none.
        grids: Sizes of the token grids.
        up: Maps [B, C, H / 8, W / 8] to [B, C, H / 4, W / 4].
        norms: A normalization for each map.
        memory_format: That of the results; all before them is channels last.

    Returns:
        Maps [B, C, H / s, W / s] for s = 4, 8, 16, 32.

    Source: Chen et al. 2022, arXiv:2205.08534, section 3.1.
    """
    tokens = zip(split_prior(c, grids), grids.prior_hw, strict=True)
    map_8, map_16, map_32 = (tokens_to_map(part, hw) for part, hw in tokens)
    # In place, as all that follows: the largest maps cost as much to allocate as to add.
    maps = [up(map_8).add_(map_4), map_8, map_16, map_32]
    if not vit_tokens:
        pairs = zip(maps, norms, strict=True)
        return [_normalize(level, norm, memory_format) for level, norm in pairs]
    vit_maps = [tokens_to_map(part, grids.vit_hw) for part in vit_tokens]
    vit_maps = vit_maps * 4 if len(vit_maps) == 1 else vit_maps
    return [
        _add_and_normalize(level, vit_map, norm, memory_format)
        for level, vit_map, norm in zip(maps, vit_maps, norms, strict=True)
    ]


def _add_and_normalize(
    level: Tensor, vit_map: Tensor, norm: nn.Module, memory_format: torch.memory_format
) -> Tensor:
    """Return norm(level + resized vit_map)."""
    if is_constant(norm):
        # The ViT map is the smaller: scaled and shifted before its resize, which keeps both.
        scale, shift = (part[:, None, None] for part in as_affine(norm))
        small = torch.addcmul(shift, vit_map, scale)
        total = _resize(small, level).addcmul_(level, scale)
        return total.contiguous(memory_format=memory_format)
    resized = _resize(vit_map, level)
    total = level + resized if resized is vit_map else resized.add_(level)
    return _normalize(total, norm, memory_format)


def _normalize(level: Tensor, norm: nn.Module, memory_format: torch.memory_format) -> Tensor:
    if is_constant(norm):
        scale, shift = (part[:, None, None] for part in as_affine(norm))
        return torch.addcmul(shift, level, scale).contiguous(memory_format=memory_format)
    if torch.compiler.is_compiling():
        normalized: Tensor = norm(level.contiguous(memory_format=memory_format))
    else:
        normalized = norm(_Relaid.apply(level, memory_format))  # type: ignore[no-untyped-call]
    return normalized


class _Relaid(torch.autograd.Function):
    """From channels last to another layout; the gradient comes back as channels last.

    Before the norm, so that its gradient is of the layout that comes in, and changed once for all
    who read it.
    """

    @staticmethod
    def forward(ctx: Any, level: Tensor, memory_format: torch.memory_format) -> Tensor:
        relaid = level.contiguous(memory_format=memory_format)
        return relaid.view_as(relaid) if relaid is level else relaid

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.contiguous(memory_format=torch.channels_last), None


def _resize(vit_map: Tensor, like: Tensor) -> Tensor:
    if vit_map.shape[2:] == like.shape[2:]:
        return vit_map
    return F.interpolate(vit_map, like.shape[2:], mode="bilinear", align_corners=False)
