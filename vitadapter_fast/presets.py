# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The published models: their settings, which models, downloads and formats read."""

from dataclasses import dataclass
from typing import Any

_WINDOW_SIZE = 14
_STAGES = 4


@dataclass(frozen=True)
class Preset:
    """One published model and the optimizer settings it is trained with.

    Every stage has depth / 4 blocks, of which the last attends globally and the others in windows.

    Attributes:
        embed_dim: Channels of a token.
        depth: ViT blocks.
        num_heads: Heads of the ViT's attention.
        deform_num_heads: Heads of the deformable attention.
        deform_ratio: Channels of its values, as a share of ``embed_dim``.
        drop_path_rate: Highest rate of stochastic depth.
        layer_decay: Factor of the learning rate from one block to the one before it.
        ffn: Feed-forward of the ViT.

    Source: ViT-Adapter's DINOv2 configs, https://github.com/czczup/ViT-Adapter; "g" is ours, with
    the ViT of Oquab et al. 2023, arXiv:2304.07193.
    """

    embed_dim: int
    depth: int
    num_heads: int
    deform_num_heads: int
    deform_ratio: float
    drop_path_rate: float
    layer_decay: float
    ffn: str = "mlp"

    def model_kwargs(self) -> dict[str, Any]:
        """Return the keywords of ``ViTAdapter``; DINOv2's 37 x 37 positions at patch size 16."""
        blocks = self.depth // _STAGES
        is_windowed = ([True] * (blocks - 1) + [False]) * _STAGES
        return {
            "pretrain_size": 592,
            "img_size": 592,
            "embed_dim": self.embed_dim,
            "depth": self.depth,
            "num_heads": self.num_heads,
            "deform_num_heads": self.deform_num_heads,
            "deform_ratio": self.deform_ratio,
            "drop_path_rate": self.drop_path_rate,
            "interaction_indexes": [
                [stage * blocks, (stage + 1) * blocks - 1] for stage in range(_STAGES)
            ],
            "window_attn": is_windowed,
            "window_size": [_WINDOW_SIZE if windowed else None for windowed in is_windowed],
            "ffn": self.ffn,
        }


PRESETS = {
    "s": Preset(384, 12, 6, 6, 1.0, 0.2, 0.70),
    "b": Preset(768, 12, 12, 12, 0.5, 0.3, 0.60),
    "l": Preset(1024, 24, 16, 16, 0.5, 0.4, 0.65),
    "g": Preset(1536, 40, 24, 24, 0.5, 0.5, 0.70, ffn="swiglu"),
}


@dataclass(frozen=True)
class DINOv3Preset:
    """One published DINOv3 ViT, and the adapters for it.

    Attributes:
        embed_dim: Channels of a token.
        depth: ViT blocks.
        num_heads: Heads of the ViT's attention.
        taps: Blocks whose tokens the adapter sees.
        deform_num_heads: Heads of the deformable attention where there are injectors.
        deform_ratio: Channels of its values, as a share of ``embed_dim``, where there are some.
        ffn: Feed-forward of the ViT.
        mlp_ratio: Its hidden channels, as a multiple of ``embed_dim``; "swiglu" has two thirds.
        qkv_bias: Whether query, key and value have biases.
        layer_decay: Factor of the learning rate from one block to the one before it, where the ViT
            trains; as for DINOv2's models.

    Source: Simeoni et al. 2025, arXiv:2508.10104.
    """

    embed_dim: int
    depth: int
    num_heads: int
    taps: tuple[int, int, int, int]
    deform_num_heads: int
    deform_ratio: float = 0.5
    ffn: str = "mlp"
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    layer_decay: float = 0.7

    def model_kwargs(self, *, injectors: bool) -> dict[str, Any]:
        """Return the keywords of ``ViTAdapter``, for DINOv3's own adapter or one with injectors."""
        firsts = [0, *(tap + 1 for tap in self.taps[:-1])]
        own = {"deform_num_heads": 16, "deform_ratio": 0.5, "vit_features": "stages"}
        ours = {"deform_num_heads": self.deform_num_heads, "deform_ratio": self.deform_ratio}
        return {
            "trunk": "dinov3",
            "embed_dim": self.embed_dim,
            "depth": self.depth,
            "num_heads": self.num_heads,
            "ffn": self.ffn,
            "mlp_ratio": self.mlp_ratio,
            "qkv_bias": self.qkv_bias,
            "interaction_indexes": [
                [first, last] for first, last in zip(firsts, self.taps, strict=True)
            ],
            "drop_path_rate": 0.3,
            "injectors": injectors,
            "final_norm": not injectors,
            "frozen_vit": not injectors,
            **(ours if injectors else own),
        }


_TAPS_OF_12 = (2, 5, 8, 11)
DINOV3_PRESETS = {
    "t": DINOv3Preset(192, 12, 3, _TAPS_OF_12, 6, 1.0),
    "s": DINOv3Preset(384, 12, 6, _TAPS_OF_12, 6, 1.0),
    "s+": DINOv3Preset(384, 12, 6, _TAPS_OF_12, 6, 1.0, "swiglu", 6.0),
    "b": DINOv3Preset(768, 12, 12, _TAPS_OF_12, 12, layer_decay=0.6),
    "l": DINOv3Preset(1024, 24, 16, (4, 11, 17, 23), 16, layer_decay=0.65),
    "h+": DINOv3Preset(1280, 32, 20, (7, 15, 23, 31), 20, 0.5, "swiglu", 6.0),
    "7b": DINOv3Preset(4096, 40, 32, (9, 19, 29, 39), 32, 0.5, "swiglu", 3.0, False),
}
