# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Image in, ViT tokens out, and the blocks that they go through; frozen or not.

Prefix tokens, cls and registers, lie behind those of the image: they attend in every block, and
nothing beside the ViT sees them.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from typing_extensions import Self

from ..settings import (
    check_choice,
    check_counts,
    check_flags,
    check_rates,
    check_ratios,
    check_sizes,
    windows_of,
)
from .patch_embed import PatchEmbed
from .rope import RotaryEmbedding
from .vit import FFNS, Block

TRUNKS = ("dinov2", "dinov3")


class ViT(nn.Module):
    """A plain ViT under the parameter names of the original, with what of it has an effect.

    Source: Dosovitskiy et al. 2021, arXiv:2010.11929; windows: Li et al. 2022, arXiv:2203.16527;
    registers: Darcet et al. 2023, arXiv:2309.16588; DINOv3: Simeoni et al. 2025, arXiv:2508.10104.
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
        trunk: str,
        num_register_tokens: int | None,
        rope_periods: str,
        final_norm: bool,
        is_frozen: bool,
    ) -> None:
        """Create patch embedding, positions and blocks; arguments as for ``ViTAdapter``."""
        super().__init__()
        check_choice("trunk", trunk, TRUNKS)
        is_rotary = trunk == "dinov3"
        registers = (4 if is_rotary else 0) if num_register_tokens is None else num_register_tokens
        if registers != 0:
            check_counts(num_register_tokens=registers)
        sizes = {"patch_size": patch_size, "img_size": img_size, "pretrain_size": pretrain_size}
        check_counts(
            num_heads=num_heads, in_chans=in_chans, embed_dim=embed_dim, depth=depth, **sizes
        )
        check_ratios(mlp_ratio=mlp_ratio)
        check_rates(
            drop_rate=drop_rate, attn_drop_rate=attn_drop_rate, drop_path_rate=drop_path_rate
        )
        check_flags(qkv_bias=qkv_bias, layer_scale=layer_scale, final_norm=final_norm)
        check_choice("ffn", ffn, FFNS)
        check_sizes(**sizes)
        windows = windows_of(window_attn, window_size, depth)
        self.trunk = trunk
        self.embed_dim = embed_dim
        self.in_chans = in_chans
        self.has_frozen_vit = is_frozen
        self.num_prefix_tokens = 1 + registers if is_rotary or registers else 0
        if self.num_prefix_tokens and any(windows):
            raise ValueError(
                f"ViTAdapter: a ViT with cls token and {registers} registers attends globally: "
                "they are in no window; set window_attn=False"
            )
        side = pretrain_size // patch_size
        norm_eps = 1e-5 if is_rotary else 1e-6
        # DINOv2's models with registers were trained with positions resized with antialias.
        resize = "bicubic_antialias" if registers else "bicubic"
        self.patch_embed = PatchEmbed(in_chans, embed_dim, (side, side), resize)
        self.pos_embed = self.rope = self.cls_token = self.register_tokens = None
        if is_rotary:
            self.rope = RotaryEmbedding(embed_dim // num_heads, rope_periods)
        else:
            # Row 0 is the cls token's: without one it is kept for the sake of checkpoints.
            self.pos_embed = nn.Parameter(torch.zeros(1, 1 + side * side, embed_dim))
        if self.num_prefix_tokens:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        if registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, registers, embed_dim))
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
                norm_eps=norm_eps,
            )
            for index, window in enumerate(windows)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=norm_eps) if final_norm else None

    def embed(self, image: Tensor) -> Tensor:
        """Return tokens of images [B, I, H, W], with positions if those are of a table, [B, N, C].

        The (H / 16) * (W / 16) of the image come first, then ``num_prefix_tokens``.
        """
        with recorded(*self._tokens(), self.patch_embed, is_frozen=self.has_frozen_vit):
            x = self.patch_embed(image, self.pos_embed)
            if self.cls_token is not None:
                position = 0.0 if self.pos_embed is None else self.pos_embed[:, :1]
                registers = [] if self.register_tokens is None else [self.register_tokens]
                prefix = torch.cat([self.cls_token + position, *registers], dim=1)
                prefix = prefix.expand(x.shape[0], -1, -1)
                x = torch.cat([x, prefix], dim=1)  # under autocast float32, as the prefix
            return self.pos_drop(x)  # type: ignore[no-any-return]

    def _tokens(self) -> list[Tensor]:
        tokens = (self.pos_embed, self.cls_token, self.register_tokens)
        return [token for token in tokens if token is not None]

    def freeze_vit(self) -> None:
        """Let no parameter of the ViT take gradients."""
        for token in self._tokens():
            token.requires_grad_(False)
        for module in (self.patch_embed, self.blocks, self.norm):
            if module is not None:
                module.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set training mode; a frozen ViT in which nothing trains stays in eval mode."""
        super().train(mode)
        if self.has_frozen_vit:
            for module in (self.patch_embed, self.pos_drop, self.blocks, self.norm):
                if module is not None and not has_trained(module):
                    module.eval()
        return self


def recorded(*parts: Tensor | nn.Module | None, is_frozen: bool) -> AbstractContextManager[object]:
    """Record gradients in the block as outside of it, but none of what is frozen and has none."""
    trains = not is_frozen or any(has_trained(part) for part in parts if part is not None)
    return torch.set_grad_enabled(torch.is_grad_enabled() and trains)


def has_trained(part: Tensor | nn.Module) -> bool:
    """Return whether ``part``, or something in it, takes gradients."""
    if isinstance(part, Tensor):
        return part.requires_grad
    return any(parameter.requires_grad for parameter in part.parameters())
