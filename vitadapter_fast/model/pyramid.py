# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Prior maps and ViT maps in; four feature maps at 1/4 to 1/32 out."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from .. import fused

if TYPE_CHECKING:
    from .vit_adapter import ViTAdapter


def feature_pyramid(
    model: "ViTAdapter", maps: Sequence[Tensor], vit_maps: Sequence[Tensor]
) -> list[Tensor]:
    """Double the map at 1/8 for that at 1/4, add the ViT's maps to all and normalize.

    A function, because upstream keeps ``up`` and the norms at the top of its parameter names.

    Args:
        model: Has ``up``, [B, C, H / 8, W / 8] to [B, C, H / 4, W / 4], and a norm for each map.
        maps: The prior's, [B, C, H / s, W / s] for s = 4, 8, 16, 32.
        vit_maps: [B, C, H / 16, W / 16]: one for each map, or none.

    Returns:
        Maps of the shapes of ``maps``.

    Source: Chen et al. 2022, arXiv:2205.08534, section 3.1.
    """
    if fused.runs(fused.pyramid, model, maps):
        return fused.pyramid.forward(model, maps, vit_maps)
    at_4, at_8, at_16, at_32 = maps
    levels = [at_4 + model.up(at_8), at_8, at_16, at_32]
    if vit_maps:
        pairs = zip(levels, vit_maps, strict=True)
        levels = [level + fused.resize(vit_map, level.shape[2:]) for level, vit_map in pairs]
    norms = (model.norm1, model.norm2, model.norm3, model.norm4)
    return [norm(level) for norm, level in zip(norms, levels, strict=True)]
