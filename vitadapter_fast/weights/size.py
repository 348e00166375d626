# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The named tensors of a ViT in, its sizes and the name of the published model out."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..presets import DINOV3_PRESETS, PRESETS
from .joined import Weight

PATCH_KERNEL = "patch_embed.proj.weight"
BLOCK = re.compile(r"blocks\.(\d+)\.")

_FFN_OF_SWIGLU = {f"blocks.0.mlp.{name}.weight" for name in ("w12", "w1", "fc1_g")}
_SIZES = {(preset.embed_dim, preset.depth): name for name, preset in PRESETS.items()}
_DINOV3_SIZES = {
    (preset.embed_dim, preset.depth, preset.ffn): name for name, preset in DINOV3_PRESETS.items()
}


@dataclass(frozen=True)
class ViTSize:
    """The sizes that tell one ViT from another.

    Attributes:
        embed_dim: Channels of a token.
        depth: Blocks.
        patch_hw: Patch size in pixels.
        num_positions: Rows of the position table, with the cls token's; 0 without a table.
        ffn: ``mlp`` or ``swiglu``.
    """

    embed_dim: int
    depth: int
    patch_hw: tuple[int, int]
    num_positions: int
    ffn: str

    @property
    def is_rotary(self) -> bool:
        """Whether it has no position table, as DINOv3."""
        return self.num_positions == 0

    @property
    def trunk(self) -> str:
        """The keyword of ``ViTAdapter``."""
        return "dinov3" if self.is_rotary else "dinov2"

    @property
    def family(self) -> str:
        """DINOv2 or DINOv3."""
        return "DINOv3" if self.is_rotary else "DINOv2"

    @property
    def builder(self) -> str | None:
        """The call that builds an adapter of a published model, else None."""
        size = self._published
        if size is None:
            return None
        return f'vit_adapter_dinov3("{size}")' if self.is_rotary else f"vit_adapter_{size}()"

    @property
    def _published(self) -> str | None:
        if self.is_rotary:
            return _DINOV3_SIZES.get((self.embed_dim, self.depth, self.ffn))
        return _SIZES.get((self.embed_dim, self.depth))

    def __str__(self) -> str:
        """Return the model's name with its sizes."""
        size = self._published
        # As its authors write them: S, B, L and g.
        name = f"ViT-{size if size == 'g' else size.upper()}" if size else "ViT"
        return f"{name} (embed_dim {self.embed_dim}, {self.depth} blocks)"


def vit_size(tensors: Mapping[str, Weight]) -> ViTSize | None:
    """Return the sizes of a ViT under official or ViTAdapter's names, None if it is not one.

    One without a position table may be a DINOv3 ViT or a part of another.
    """
    kernel, positions = tensors.get(PATCH_KERNEL), tensors.get("pos_embed")
    if kernel is None or kernel.dim() != 4:
        return None
    if positions is not None and (positions.dim() != 3 or positions.shape[1] == 0):
        return None
    blocks = {match[1] for name in tensors if (match := BLOCK.match(name))}
    return ViTSize(
        embed_dim=kernel.shape[0],
        depth=len(blocks),
        patch_hw=(kernel.shape[2], kernel.shape[3]),
        num_positions=0 if positions is None else positions.shape[1],
        ffn="swiglu" if _FFN_OF_SWIGLU & tensors.keys() else "mlp",
    )
