# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Prior maps and ViT maps in; four feature maps at 1/4 to 1/32 out."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from .. import fused
from ..fused.maps import tokens_to_map
from .grid import Grids, split_prior

if TYPE_CHECKING:
    from .vit_adapter import ViTAdapter


def feature_pyramid(
    model: "ViTAdapter", at_4: Tensor, c: Tensor, vit_tokens: Sequence[Tensor], grids: Grids
) -> list[Tensor]:
    """Add the doubled map at 1/8 to that at 1/4, the ViT's maps to all, and normalize.

    A function, because upstream keeps ``up`` and the norms at the top of its parameter names.

    Args:
        model: Has ``up``, [B, C, H / 8, W / 8] to [B, C, H / 4, W / 4], and a norm for each map.
        at_4: The prior's map, [B, C, H / 4, W / 4].
        c: Prior tokens, [B, Q, C].
        vit_tokens: ViT tokens [B, h * w, C]: four for the four maps, one for all of them, or none.
        grids: Sizes of the token grids.

    Returns:
        Maps [B, C, H / s, W / s] for s = 4, 8, 16, 32.

    Source: Chen et al. 2022, arXiv:2205.08534, section 3.1.
    """
    tokens = zip(split_prior(c, grids), grids.prior_hw, strict=True)
    maps = [at_4, *(tokens_to_map(part, hw) for part, hw in tokens)]
    vit_maps = [tokens_to_map(part, grids.vit_hw) for part in vit_tokens]
    if len(vit_maps) == 1:
        vit_maps *= len(maps)
    if fused.runs(fused.pyramid, model):
        return fused.pyramid.forward(model, maps, vit_maps)
    maps[0] = at_4 + model.up(maps[1])
    if vit_maps:
        pairs = zip(maps, vit_maps, strict=True)
        maps = [level + fused.resize(vit_map, level.shape[2:]) for level, vit_map in pairs]
    norms = (model.norm1, model.norm2, model.norm3, model.norm4)
    return [norm(level) for norm, level in zip(norms, maps, strict=True)]
