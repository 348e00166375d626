# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Prior tokens and ViT tokens in, prior tokens that have read the ViT out."""

import torch
from torch import Tensor, nn

from ..native import tensors
from ..ops import dwconv_gelu
from .deform_attn import DeformAttn
from .drop_path import DropPath, add_branch
from .grid import Grids
from .linear import norm_linear, residual_linear
from .plain import is_watched
from .vit import LAYER_NORM_EPS


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
        c = self.attn(c, grids.prior_hw, self.query_norm, x, (grids.vit_hw,), self.feat_norm)
        if self.with_cffn:
            # Nobody else has seen what the attention made, unless by a hook. Only the CPU gains.
            overwrites = (
                tensors.is_on_cpu(c)
                and not torch.is_grad_enabled()
                and type(self.attn) is DeformAttn
                and not is_watched(self)
            )
            c = add_branch(self.drop_path, self.ffn, c, grids, self.ffn_norm, overwrites)
        return c


class ConvFFN(nn.Module):
    """Add two linear layers with a depthwise convolution and GELU between them."""

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

    def forward(
        self,
        c: Tensor,
        grids: Grids,
        norm: nn.LayerNorm,
        overwrites: bool = False,
        kept: Tensor | None = None,
    ) -> Tensor:
        """Return c + kept * ffn(norm(c)), [B, Q, C].

        Args:
            c: Prior tokens, [B, Q, C].
            grids: Sizes of the token grids.
            norm: Normalization before the first layer.
            overwrites: Whether the result may come in the memory of ``c``, as in
                ``residual_linear``.
            kept: A factor for each sample, [B, 1, 1], or None for 1.
        """
        hidden, c = norm_linear(c, norm, self.fc1)
        hidden = self.dwconv(hidden, grids)
        return residual_linear(c, hidden, self.fc2, kept=kept, overwrites=overwrites)


class DepthwiseConv(nn.Module):
    """One depthwise 3 x 3 convolution, shared by the three prior grids, and GELU."""

    def __init__(self, dim: int) -> None:
        """Create the convolution for tokens of ``dim`` channels."""
        super().__init__()
        # Only holds the parameters, under upstream's names.
        self.dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, c: Tensor, grids: Grids) -> Tensor:
        """Map prior tokens, [B, Q, C], to the same shape; each grid has its own zero border."""
        return dwconv_gelu(c, grids.prior_hw, self.dwconv.weight, self.dwconv.bias)
