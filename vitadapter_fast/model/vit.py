# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""ViT tokens in, ViT tokens out: transformer blocks with global or windowed attention."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import fused
from .drop_path import DropPath

FFNS = ("mlp", "swiglu")


@fused.readable(qkv=fused.LINEARS, proj=fused.LINEARS, proj_drop=nn.Dropout)
class Attention(nn.Module):
    """Multi-head self-attention, among all tokens or within square windows of the grid."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        drop: float = 0.0,
        window_size: int | None = None,
    ) -> None:
        """Create the projections.

        Args:
            dim: Channels of a token.
            num_heads: Heads.
            qkv_bias: Whether the query, key and value projection has a bias.
            attn_drop: Dropout rate of the attention weights.
            drop: Dropout rate of the result.
            window_size: Side of the windows in tokens, or None for global attention.

        Raises:
            ValueError: The heads do not divide the channels.
        """
        super().__init__()
        if dim % num_heads:
            raise ValueError(
                f"Attention: embed_dim {dim} must divide among the heads, got num_heads="
                f"{num_heads}; change either"
            )
        self.num_heads = num_heads
        self.window_size = window_size
        self.attn_drop = attn_drop
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(drop)

    def forward(self, x: Tensor, hw: tuple[int, int], rope: Tensor | None = None) -> Tensor:
        """Return tokens of the same shape.

        Args:
            x: [B, N, C].
            hw: (h, w) of the token grid, whose tokens come first; unused by global attention
                without rotary positions.
            rope: What ``RotaryEmbedding`` returns for the grid, or None for no rotary positions.
        """
        heads = fused.by_heads(self, self.qkv(x), hw, rope)
        dropout = self.attn_drop if self.training else 0.0
        attended = fused.attend(heads, hw, self.window_size, dropout)
        return self.proj_drop(self.proj(attended))  # type: ignore[no-any-return]


@fused.readable(fc1=fused.LINEARS, fc2=fused.LINEARS, drop=nn.Dropout)
class Mlp(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, dim: int, ratio: float, drop: float) -> None:
        """Create the layers: ``dim`` channels, ``ratio`` times as many hidden, dropout ``drop``."""
        super().__init__()
        self.fc1 = nn.Linear(dim, int(dim * ratio))
        self.fc2 = nn.Linear(int(dim * ratio), dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens, [B, N, C], to the same shape."""
        hidden = self.drop(F.gelu(self.fc1(x)))
        return self.drop(self.fc2(hidden))  # type: ignore[no-any-return]


@fused.readable(w12=fused.LINEARS, w3=fused.LINEARS, drop=nn.Dropout)
class SwiGLU(nn.Module):
    """A gated feed-forward: w3(silu(gate) * value).

    Source: Shazeer 2020, arXiv:2002.05202; sizes: Oquab et al. 2023, arXiv:2304.07193.
    """

    def __init__(self, dim: int, ratio: float, drop: float) -> None:
        """Create the layers.

        Args:
            dim: Channels of a token.
            ratio: Hidden channels of the ungated form, as a multiple of ``dim``; this one has two
                thirds of them, rounded up to a multiple of 8.
            drop: Dropout rate of the result.
        """
        super().__init__()
        hidden_dim = (int(dim * ratio * 2 / 3) + 7) // 8 * 8
        self.w12 = nn.Linear(dim, 2 * hidden_dim)
        self.w3 = nn.Linear(hidden_dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens, [B, N, C], to the same shape."""
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.drop(self.w3(F.silu(gate) * value))  # type: ignore[no-any-return]


@fused.readable(
    norm1=nn.LayerNorm,
    attn=Attention,
    norm2=nn.LayerNorm,
    mlp=(Mlp, SwiGLU),
    drop_path=DropPath,
)
class Block(nn.Module):
    """Attention, then a feed-forward; each reads normalized tokens, is scaled and added.

    Source: Dosovitskiy et al. 2021, arXiv:2010.11929; LayerScale: Touvron et al. 2021,
    arXiv:2103.17239.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
        window_size: int | None = None,
        layer_scale: bool = True,
        ffn: str = "mlp",
        norm_eps: float = 1e-6,
    ) -> None:
        """Create the two branches.

        Args:
            dim: Channels of a token.
            num_heads: Heads of the attention.
            mlp_ratio: Hidden channels of the feed-forward, as a multiple of ``dim``; SwiGLU has two
                thirds of them, rounded up to a multiple of 8.
            qkv_bias: Whether the query, key and value projection has a bias.
            drop: Dropout rate of both branches.
            attn_drop: Dropout rate of the attention weights.
            drop_path: Rate at which a sample skips a branch in training.
            window_size: Side of the attention windows in tokens, or None for global attention.
            layer_scale: Whether the branches are scaled by learned gammas.
            ffn: "mlp" or "swiglu".
            norm_eps: Added to the variance in both norms.

        Raises:
            ValueError: The heads do not divide the channels, or ``ffn`` is unknown.
        """
        super().__init__()
        if ffn not in FFNS:
            raise ValueError(f"Block: ffn must be one of {', '.join(FFNS)}, got {ffn!r}")
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = Attention(
            dim,
            num_heads,
            qkv_bias=qkv_bias,
            attn_drop=attn_drop,
            drop=drop,
            window_size=window_size,
        )
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = (Mlp if ffn == "mlp" else SwiGLU)(dim, mlp_ratio, drop)
        self.drop_path = DropPath(drop_path)
        self.gamma1 = nn.Parameter(torch.ones(dim)) if layer_scale else None
        self.gamma2 = nn.Parameter(torch.ones(dim)) if layer_scale else None

    def forward(self, x: Tensor, hw: tuple[int, int], rope: Tensor | None = None) -> Tensor:
        """Return tokens of the same shape.

        Args:
            x: [B, N, C]: the h * w tokens of the grid; with global attention others after them.
            hw: (h, w) of the token grid.
            rope: As for ``Attention``.
        """
        if fused.runs(fused.block, self, x):
            return fused.block.forward(self, x, hw, rope)
        # Rotary positions are passed where there are some: an attention of others may have none.
        grid = (hw,) if rope is None else (hw, rope)
        x = scaled_sum(x, self.gamma1, self.drop_path(self.attn(self.norm1(x), *grid)))
        return scaled_sum(x, self.gamma2, self.drop_path(self.mlp(self.norm2(x))))


def scaled_sum(x: Tensor, gamma: Tensor | None, branch: Tensor) -> Tensor:
    """Return x + gamma * branch, [B, N, C]; no gamma is 1."""
    return x + branch if gamma is None else torch.addcmul(x, gamma, branch)
