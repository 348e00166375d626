# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Image in, ViT tokens with positions out, and the blocks that they go through; frozen or not."""

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from typing_extensions import Self

from .config import (
    check_choice,
    check_counts,
    check_flags,
    check_rates,
    check_ratios,
    check_sizes,
    windows_of,
)
from .patch_embed import PatchEmbed
from .vit import FFNS, Block


class ViT(nn.Module):
    """A plain ViT under the parameter names of the original, without cls token and final norm.

    Source: Dosovitskiy et al. 2021, arXiv:2010.11929; windows: Li et al. 2022, arXiv:2203.16527.
    """

    def __init__(
        self,
        *,
        pretrain_size: int,
        img_size: int,
        patch_size: int,
        in_chans: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float,
        qkv_bias: bool,
        drop_rate: float,
        attn_drop_rate: float,
        drop_path_rate: float,
        layer_scale: bool,
        window_attn: bool | Sequence[bool],
        window_size: int | None | Sequence[int | None],
        ffn: str,
        is_frozen: bool,
    ) -> None:
        """Create patch embedding, position table and blocks; arguments as for ``ViTAdapter``."""
        super().__init__()
        sizes = {"patch_size": patch_size, "img_size": img_size, "pretrain_size": pretrain_size}
        check_counts(
            num_heads=num_heads, in_chans=in_chans, embed_dim=embed_dim, depth=depth, **sizes
        )
        check_ratios(mlp_ratio=mlp_ratio)
        check_rates(
            drop_rate=drop_rate, attn_drop_rate=attn_drop_rate, drop_path_rate=drop_path_rate
        )
        check_flags(qkv_bias=qkv_bias, layer_scale=layer_scale)
        check_choice("ffn", ffn, FFNS)
        check_sizes(**sizes)
        windows = windows_of(window_attn, window_size, depth)
        self.embed_dim = embed_dim
        self.in_chans = in_chans
        self.has_frozen_vit = is_frozen
        side = pretrain_size // patch_size
        self.patch_embed = PatchEmbed(in_chans, embed_dim, (side, side))
        # Row 0 is the cls token's: unused, kept for the sake of checkpoints.
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + side * side, embed_dim))
        self.pos_drop = nn.Dropout(drop_rate)
        self.blocks = nn.ModuleList(
            Block(
                embed_dim,
                num_heads,
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                drop=drop_rate,
                attn_drop=attn_drop_rate,
                drop_path=drop_path_rate * index / max(depth - 1, 1),
                window_size=window,
                layer_scale=layer_scale,
                ffn=ffn,
            )
            for index, window in enumerate(windows)
        )

    def embed(self, image: Tensor) -> Tensor:
        """Return tokens with positions, [B, (H / 16) * (W / 16), C], of images [B, I, H, W]."""
        with recorded(self.pos_embed, self.patch_embed, is_frozen=self.has_frozen_vit):
            x: Tensor = self.pos_drop(self.patch_embed(image, self.pos_embed))
            return x

    def freeze_vit(self) -> None:
        """Let no parameter of the ViT take gradients."""
        self.pos_embed.requires_grad_(False)
        for module in (self.patch_embed, self.blocks):
            module.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set training mode; a frozen ViT in which nothing trains stays in eval mode."""
        super().train(mode)
        if self.has_frozen_vit:
            for module in (self.patch_embed, self.pos_drop, self.blocks):
                if not has_trained(module):
                    module.eval()
        return self


def recorded(x: Tensor, *parts: nn.Module, is_frozen: bool) -> AbstractContextManager[object]:
    """Record gradients in the block as outside of it, but none of what is frozen and has none."""
    trains = not is_frozen or x.requires_grad or any(map(has_trained, parts))
    return torch.set_grad_enabled(torch.is_grad_enabled() and trains)


def has_trained(module: nn.Module) -> bool:
    """Return whether something in ``module`` takes gradients."""
    return any(parameter.requires_grad for parameter in module.parameters())
