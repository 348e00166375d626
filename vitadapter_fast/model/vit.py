# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""ViT tokens in, ViT tokens out: transformer blocks with global or windowed attention."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..native import tensors
from ..native.extension import unavailable_reason
from ..ops import window_attention
from ..ops._backends import requested
from ..ops.window_attention import triton
from ..ops.window_attention._call import Call
from ..ops.window_attention.reference import merge_windows, partition_windows
from .drop_path import DropPath, add_branch
from .linear import activate, norm_linear, residual_linear

LAYER_NORM_EPS = 1e-6
FFNS = ("mlp", "swiglu")


class Block(nn.Module):
    """Attention, then a feed-forward; each is normalized, scaled and added to the tokens.

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

        Raises:
            ValueError: The heads do not divide the channels, or ``ffn`` is unknown.
        """
        super().__init__()
        if ffn not in FFNS:
            raise ValueError(f"Block: ffn must be one of {', '.join(FFNS)}, got {ffn!r}")
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = Attention(
            dim,
            num_heads,
            qkv_bias=qkv_bias,
            attn_drop=attn_drop,
            drop=drop,
            window_size=window_size,
        )
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = (Mlp if ffn == "mlp" else SwiGLU)(dim, mlp_ratio, drop)
        self.drop_path = DropPath(drop_path)
        self.gamma1 = nn.Parameter(torch.ones(dim)) if layer_scale else None
        self.gamma2 = nn.Parameter(torch.ones(dim)) if layer_scale else None

    def forward(self, x: Tensor, hw: tuple[int, int]) -> Tensor:
        """Return tokens of the same shape.

        Args:
            x: [B, h * w, C]; with global attention any number of tokens.
            hw: (h, w) of the token grid; global attention does not use it.
        """
        x = add_branch(self.drop_path, self.attn, x, hw, self.norm1, self.gamma1)
        return add_branch(self.drop_path, self.mlp, x, self.norm2, self.gamma2)


class Attention(nn.Module):
    """Add multi-head self-attention, among all tokens or within square windows of the grid."""

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

    def forward(
        self,
        x: Tensor,
        hw: tuple[int, int],
        norm: nn.LayerNorm,
        gamma: Tensor | None = None,
        kept: Tensor | None = None,
    ) -> Tensor:
        """Return x + kept * gamma * attention(norm(x)), [B, N, C].

        Args:
            x: [B, N, C].
            hw: (h, w) of the token grid; global attention does not use it.
            norm: Normalization of the tokens that attend.
            gamma: [C], or None for 1.
            kept: A factor for each sample, [B, 1, 1], or None for 1.
        """
        qkv, x = norm_linear(x, norm, self.qkv)
        heads = torch.unflatten(qkv, 2, (3, self.num_heads, -1))
        is_dropping = self.attn_drop > 0.0 and self.training
        if self.window_size is None:
            if is_dropping or not _beats_torch(heads):
                attended = self._attend(qkv)
            else:
                attended = window_attention(heads, (1, x.shape[1]), None)
        elif is_dropping or not _has_kernel(heads, hw, self.window_size):
            windows = partition_windows(qkv, hw, self.window_size)
            attended = merge_windows(self._attend(windows), hw, self.window_size)
        else:
            attended = window_attention(heads, hw, self.window_size)
        drop = _active_rate(self.proj_drop)
        return residual_linear(x, attended, self.proj, gamma=gamma, kept=kept, drop=drop)

    def _attend(self, qkv: Tensor) -> Tensor:
        """[B, N, 3 * C] -> [B, N, C]."""
        # Strided views of one buffer: scaled_dot_product_attention reads them without a copy.
        query, key, value = torch.unflatten(qkv, 2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        dropout = self.attn_drop if self.training else 0.0
        out = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        return out.transpose(1, 2).flatten(2)


class Mlp(nn.Module):
    """Add two linear layers with GELU between them."""

    def __init__(self, dim: int, ratio: float, drop: float) -> None:
        """Create the layers: ``dim`` channels, ``ratio`` times as many hidden, dropout ``drop``."""
        super().__init__()
        self.fc1 = nn.Linear(dim, int(dim * ratio))
        self.fc2 = nn.Linear(int(dim * ratio), dim)
        self.drop = nn.Dropout(drop)

    def forward(
        self,
        x: Tensor,
        norm: nn.LayerNorm,
        gamma: Tensor | None = None,
        kept: Tensor | None = None,
    ) -> Tensor:
        """Return x + kept * gamma * mlp(norm(x)), [B, N, C]; arguments as for ``Attention``."""
        hidden, x = norm_linear(x, norm, self.fc1)
        activation, drop = "gelu", _active_rate(self.drop)
        if drop > 0.0:
            hidden, activation = self.drop(activate(hidden, activation)), "none"
        return residual_linear(
            x, hidden, self.fc2, activation=activation, gamma=gamma, kept=kept, drop=drop
        )


class SwiGLU(nn.Module):
    """Add a gated feed-forward: w3(silu(gate) * value).

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

    def forward(
        self,
        x: Tensor,
        norm: nn.LayerNorm,
        gamma: Tensor | None = None,
        kept: Tensor | None = None,
    ) -> Tensor:
        """Return x + kept * gamma * swiglu(norm(x)), [B, N, C]; arguments as for ``Attention``."""
        hidden, x = norm_linear(x, norm, self.w12)
        drop = _active_rate(self.drop)
        return residual_linear(
            x, hidden, self.w3, activation="swiglu", gamma=gamma, kept=kept, drop=drop
        )


def _beats_torch(heads: Tensor) -> bool:
    """Return whether our kernel attends among all tokens, [B, N, 3, M, D], faster than torch's.

    It does on the CPU in float32, where it keeps one thread busy for each head of each image; torch
    also splits the queries. Milliseconds on a 2-core AMD EPYC (AVX-512), 6 heads of 64 channels,
    torch's against ours: 1024 tokens forward 10.1 and 5.3, with backward 36 and 18; 4096 tokens 157
    and 78, 570 and 263.
    """
    return (
        not tensors.is_recorded()
        and unavailable_reason() is None
        and requested(None) in (None, "cpu")
        and tensors.is_on_cpu(heads)
        and heads.dtype == torch.float32
        and heads.shape[0] * heads.shape[3] >= torch.get_num_threads()
    )


def _has_kernel(heads: Tensor, hw: tuple[int, int], window_size: int) -> bool:
    """Return whether a kernel attends within windows where they lie, [B, N, 3, M, D].

    GPUs have Triton's, for most heads. Else torch's attends to copies of the windows, and keeps no
    logits as the operator's definition would.
    """
    return (
        torch.compiler.is_compiling()
        or tensors.is_on_cpu(heads)
        or requested(None) is not None
        or triton.unsupported_reason(Call(heads, list(hw), window_size)) is None
    )


def _active_rate(dropout: nn.Dropout) -> float:
    return dropout.p if dropout.training else 0.0
