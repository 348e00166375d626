# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""ViT tokens and prior tokens in, ViT tokens that have read the prior out."""

import torch
from torch import Tensor, nn

from .. import fused
from .deform_attn import DeformAttn
from .grid import Grids
from .norm import LAYER_NORM_EPS
from .vit import scaled_sum


@fused.readable(query_norm=nn.LayerNorm, feat_norm=nn.LayerNorm, attn=DeformAttn)
class Injector(nn.Module):
    """Add what each ViT token samples from the prior maps, scaled by a learned gamma.

    Source: Chen et al. 2022, arXiv:2205.08534, eq. 1.
    """

    def __init__(
        self, dim: int, *, num_heads: int, num_points: int, deform_ratio: float, init_value: float
    ) -> None:
        """Create the attention.

        Args:
            dim: Channels of a token.
            num_heads: Heads of the deformable attention.
            num_points: Points for each head and level.
            deform_ratio: Channels of the values, as a share of ``dim``.
            init_value: Where gamma starts; 0 leaves the pretrained ViT unchanged.
        """
        super().__init__()
        self.query_norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.feat_norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = DeformAttn(dim, num_heads, 3, num_points, deform_ratio)
        self.init_value = float(init_value)
        self.gamma = nn.Parameter(torch.full((dim,), self.init_value))

    def forward(self, x: Tensor, c: Tensor, grids: Grids) -> Tensor:
        """Return ViT tokens, [B, h * w, C], from ViT tokens ``x`` and prior tokens ``c``."""
        if fused.runs(fused.injector, self, x, c):
            return fused.injector.forward(self, x, c, grids)
        query, feature = self.query_norm(x), self.feat_norm(c)
        return scaled_sum(  # eq. 1
            x, self.gamma, self.attn(query, (grids.vit_hw,), feature, grids.prior_hw)
        )
