# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Prior tokens and ViT tokens in, prior tokens that have read the ViT out."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import fused, ops
from ..fused.maps import map_to_tokens, tokens_to_map
from .deform_attn import DeformAttn
from .drop_path import DropPath
from .grid import Grids, split_prior
from .norm import LAYER_NORM_EPS


@fused.readable(dwconv=nn.Conv2d)
class DepthwiseConv(nn.Module):
    """One depthwise 3 x 3 convolution, shared by the three prior grids, and GELU."""

    def __init__(self, dim: int) -> None:
        """Create the convolution for tokens of ``dim`` channels."""
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, c: Tensor, grids: Grids) -> Tensor:
        """Map prior tokens, [B, Q, C], to the same shape; each grid has its own zero border."""
        if fused.touched_reason(self) is None:
            return ops.dwconv_gelu(c, grids.prior_hw, self.dwconv.weight, self.dwconv.bias)
        tokens = zip(split_prior(c, grids), grids.prior_hw, strict=True)
        maps = [F.gelu(self.dwconv(tokens_to_map(part, hw))) for part, hw in tokens]
        return torch.cat([map_to_tokens(level) for level in maps], dim=1)


@fused.readable(fc1=fused.LINEARS, dwconv=DepthwiseConv, fc2=fused.LINEARS)
class ConvFFN(nn.Module):
    """Two linear layers with a depthwise convolution and GELU between them."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        """Create the layers.

        Args:
            dim: Channels of a token.
            hidden_dim: Channels between the linear layers.

        Raises:
            ValueError: There are no hidden channels.
        """
        super().__init__()
        if hidden_dim < 1:
            raise ValueError(
                f"ConvFFN: hidden channels must be positive, got {hidden_dim} for {dim} channels; "
                "raise cffn_ratio"
            )
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.dwconv = DepthwiseConv(hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, c: Tensor, grids: Grids) -> Tensor:
        """Map prior tokens, [B, Q, C], to the same shape."""
        return self.fc2(self.dwconv(self.fc1(c), grids))  # type: ignore[no-any-return]


@fused.readable(
    query_norm=nn.LayerNorm,
    feat_norm=nn.LayerNorm,
    attn=DeformAttn,
    ffn=ConvFFN,
    ffn_norm=nn.LayerNorm,
    drop_path=DropPath,
)
class Extractor(nn.Module):
    """Add what each prior token samples from the ViT map, then a feed-forward with convolution.

    Source: Chen et al. 2022, arXiv:2205.08534, eq. 2 and 3.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        num_points: int,
        deform_ratio: float,
        with_cffn: bool,
        cffn_ratio: float,
        drop_path: float,
    ) -> None:
        """Create the attention and the feed-forward.

        Args:
            dim: Channels of a token.
            num_heads: Heads of the deformable attention.
            num_points: Points for each head.
            deform_ratio: Channels of the values, as a share of ``dim``.
            with_cffn: Whether there is a feed-forward.
            cffn_ratio: Hidden channels of the feed-forward, as a share of ``dim``.
            drop_path: Rate at which a sample skips the feed-forward in training.
        """
        super().__init__()
        self.query_norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.feat_norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = DeformAttn(dim, num_heads, 1, num_points, deform_ratio)
        self.with_cffn = with_cffn
        if with_cffn:
            self.ffn = ConvFFN(dim, int(dim * cffn_ratio))
            self.ffn_norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
            self.drop_path = DropPath(drop_path)

    def forward(self, c: Tensor, x: Tensor, grids: Grids) -> Tensor:
        """Return prior tokens, [B, Q, C], from prior tokens ``c`` and ViT tokens ``x``."""
        if fused.runs(fused.extractor, self, c, x):
            return fused.extractor.forward(self, c, x, grids)
        query, feature = self.query_norm(c), self.feat_norm(x)
        c = c + self.attn(query, grids.prior_hw, feature, (grids.vit_hw,))  # eq. 2
        if self.with_cffn:
            c = c + self.drop_path(self.ffn(self.ffn_norm(c), grids))  # eq. 3
        return c
