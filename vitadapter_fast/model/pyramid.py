# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Prior tokens, the map at 1/4 and ViT maps in; four feature maps at 1/4 to 1/32 out."""

from collections.abc import Sequence

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

    Returns:
        Maps [B, C, H / s, W / s] for s = 4, 8, 16, 32, in any memory format.

    Source: Chen et al. 2022, arXiv:2205.08534, section 3.1.
    """
    tokens = zip(split_prior(c, grids), grids.prior_hw, strict=True)
    map_8, map_16, map_32 = (tokens_to_map(part, hw) for part, hw in tokens)
    # In place, as all that follows: the largest maps cost as much to allocate as to add.
    maps = [up(map_8).add_(map_4), map_8, map_16, map_32]
    if not vit_tokens:
        return [_normalize(level, norm) for level, norm in zip(maps, norms, strict=True)]
    vit_maps = [tokens_to_map(part, grids.vit_hw) for part in vit_tokens]
    vit_maps = vit_maps * 4 if len(vit_maps) == 1 else vit_maps
    return [
        _add_and_normalize(level, vit_map, norm)
        for level, vit_map, norm in zip(maps, vit_maps, norms, strict=True)
    ]


def _add_and_normalize(level: Tensor, vit_map: Tensor, norm: nn.Module) -> Tensor:
    """Return norm(level + resized vit_map)."""
    if is_constant(norm):
        # The ViT map is the smaller: scaled and shifted before its resize, which keeps both.
        scale, shift = (part[:, None, None] for part in as_affine(norm))
        return _resize(torch.addcmul(shift, vit_map, scale), level).addcmul_(level, scale)
    resized = _resize(vit_map, level)
    total: Tensor = norm(level + resized if resized is vit_map else resized.add_(level))
    return total


def _normalize(level: Tensor, norm: nn.Module) -> Tensor:
    if is_constant(norm):
        scale, shift = (part[:, None, None] for part in as_affine(norm))
        return torch.addcmul(shift, level, scale)
    normalized: Tensor = norm(level)
    return normalized


def _resize(vit_map: Tensor, like: Tensor) -> Tensor:
    if vit_map.shape[2:] == like.shape[2:]:
        return vit_map
    return F.interpolate(vit_map, like.shape[2:], mode="bilinear", align_corners=False)
