# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Query tokens and value tokens on grids in, query tokens that have attended out."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .. import fused, ops


@fused.readable(
    sampling_offsets=nn.Linear,
    attention_weights=nn.Linear,
    value_proj=fused.LINEARS,
    output_proj=fused.LINEARS,
)
class DeformAttn(nn.Module):
    """Let each query sample a few points of the value maps around its own position.

    Source: Zhu et al. 2021, arXiv:2010.04159, eq. 3.
    """

    def __init__(
        self, dim: int, num_heads: int, num_levels: int, num_points: int, ratio: float
    ) -> None:
        """Create the projections.

        Args:
            dim: Channels of a token.
            num_heads: Heads.
            num_levels: Value maps.
            num_points: Points for each head and level.
            ratio: Channels of the values, as a share of ``dim``.

        Raises:
            ValueError: The value channels do not divide among the heads.
        """
        super().__init__()
        value_dim = int(dim * ratio)
        if value_dim < 1 or value_dim % num_heads:
            raise ValueError(
                f"DeformAttn: the {value_dim} value channels (embed_dim {dim} * deform_ratio "
                f"{ratio}) must divide among the heads, got deform_num_heads={num_heads}; change "
                "either"
            )
        self.num_heads = num_heads
        self.num_levels = num_levels
        self.num_points = num_points
        self.sampling_offsets = nn.Linear(dim, num_heads * num_levels * num_points * 2)
        self.attention_weights = nn.Linear(dim, num_heads * num_levels * num_points)
        self.value_proj = nn.Linear(dim, value_dim)
        self.output_proj = nn.Linear(value_dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start from fixed points: head m looks at angle 2 pi m / M, its point p at p + 1 pixels.

        Pixels are counted along the larger axis, and all points weigh the same.
        """
        nn.init.zeros_(self.sampling_offsets.weight)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)
        angles = [2 * math.pi * head / self.num_heads for head in range(self.num_heads)]
        direction = torch.tensor([(math.cos(angle), math.sin(angle)) for angle in angles])
        direction = direction / direction.abs().amax(dim=1, keepdim=True)  # [M, 2]
        distance = torch.arange(1.0, self.num_points + 1)  # [P]
        points = direction[:, None, None, :] * distance[:, None]  # [M, 1, P, 2]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(points.repeat(1, self.num_levels, 1, 1).flatten())

    def forward(
        self,
        query: Tensor,
        query_hw: Sequence[tuple[int, int]],
        feature: Tensor,
        level_hw: Sequence[tuple[int, int]],
    ) -> Tensor:
        """Return what the queries sample from the value maps, [B, Q, C].

        Args:
            query: [B, Q, C].
            query_hw: (h, w) of the query grids; products sum to Q.
            feature: [B, S, C].
            level_hw: (h, w) of the value maps; products sum to S.
        """
        heads = (self.num_heads, self.num_levels, self.num_points)
        value = self.value_proj(feature)
        offsets = torch.unflatten(self.sampling_offsets(query), 2, (*heads, 2))
        logits = torch.unflatten(self.attention_weights(query), 2, heads)
        attended = ops.ms_deform_attn_grid(value, level_hw, query_hw, offsets, logits)
        return self.output_proj(attended)  # type: ignore[no-any-return]
