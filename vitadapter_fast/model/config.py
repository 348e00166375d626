# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Names of the published models in, their settings out; and the checks of all settings."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, TypeVar

T = TypeVar("T")

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


def check_counts(**counts: int) -> None:
    """Raise TypeError or ValueError unless every value is a positive integer."""
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, Integral):
            raise TypeError(f"ViTAdapter: {name} must be an integer, got {count!r}")
    check_ratios(**counts)


def check_ratios(**ratios: float) -> None:
    """Raise TypeError or ValueError unless every value is a positive, finite number."""
    check_numbers(**ratios)
    for name, ratio in ratios.items():
        if not 0 < ratio < math.inf:
            raise ValueError(f"ViTAdapter: {name} must be positive, got {ratio}")


def check_numbers(**values: float) -> None:
    """Raise TypeError unless every value is a number."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"ViTAdapter: {name} must be a number, got {value!r}")


def check_flags(**flags: bool) -> None:
    """Raise TypeError unless every value is True or False."""
    for name, flag in flags.items():
        if not (isinstance(flag, Integral) and flag in (0, 1)):
            raise TypeError(f"ViTAdapter: {name} must be True or False, got {flag!r}")


def check_rates(**rates: float) -> None:
    """Raise TypeError or ValueError unless every value is a number in [0, 1)."""
    check_numbers(**rates)
    for name, rate in rates.items():
        if not 0 <= rate < 1:
            raise ValueError(f"ViTAdapter: {name} must be at least 0 and below 1, got {rate}")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise ValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"ViTAdapter: {name} must be one of {', '.join(choices)}, got {value!r}")


def check_sizes(patch_size: int, img_size: int, pretrain_size: int) -> None:
    """Raise ValueError unless the patch is 16 and both sizes name the same position table."""
    if patch_size != 16:
        raise ValueError(
            f"ViTAdapter: patch_size must be 16, got {patch_size}: the strides 4, 8, 16, 32 "
            "depend on it; weights of patch size 14 are resized while loading (pretrained=) or by "
            "convert_14to16.py"
        )
    if img_size < 16 or img_size // 16 != pretrain_size // 16:
        raise ValueError(
            "ViTAdapter: img_size and pretrain_size must give one position table of size // 16, "
            f"got {img_size} // 16 = {img_size // 16} and {pretrain_size} // 16 = "
            f"{pretrain_size // 16}; set both to the size the weights were trained at (DINOv2: 592)"
        )


def stage_bounds(interaction_indexes: Sequence[Sequence[int]], depth: int) -> list[tuple[int, int]]:
    """Return the first and last block of each stage.

    Args:
        interaction_indexes: For each stage its block indexes, of which the ends count.
        depth: ViT blocks.

    Raises:
        TypeError: They are not lists.
        ValueError: The stages do not cover all blocks once and in order.
    """
    stages = interaction_indexes
    if not isinstance(stages, Sequence) or not all(isinstance(each, Sequence) for each in stages):
        raise TypeError(
            f"ViTAdapter: interaction_indexes must be a list of [first, last], got {stages!r}"
        )
    expected = 0
    bounds = []
    for indexes in interaction_indexes:
        if len(indexes) == 0 or indexes[0] != expected or indexes[-1] < expected:
            break
        bounds.append((indexes[0], indexes[-1]))
        expected = indexes[-1] + 1
    if expected != depth or len(bounds) != len(interaction_indexes):
        raise ValueError(
            "ViTAdapter: interaction_indexes must be [first, last] pairs that cover blocks 0 to "
            f"{depth - 1} in order without gaps, got {[list(each) for each in interaction_indexes]}"
        )
    return bounds


def windows_of(
    window_attn: bool | Sequence[bool], window_size: int | None | Sequence[int | None], depth: int
) -> list[int | None]:
    """Return the window size of each block, None where attention is global.

    Args:
        window_attn: Whether attention is windowed, for all blocks or each.
        window_size: Side of a window in tokens, for all blocks or each; unused where global.
        depth: ViT blocks.

    Raises:
        ValueError: A list has another length than ``depth``, or a windowed block no positive size.
    """
    sizes = _per_block("window_size", window_size, depth)
    windows = []
    for block, windowed in enumerate(_per_block("window_attn", window_attn, depth)):
        size = sizes[block] if windowed else None
        if windowed and (size is None or size < 1):
            raise ValueError(
                f"ViTAdapter: window_size must be positive where window_attn is True, got {size} "
                f"for block {block}"
            )
        windows.append(size)
    return windows


def _per_block(name: str, value: T | Sequence[T], depth: int) -> list[T]:
    if not isinstance(value, Sequence):
        return [value] * depth
    if len(value) != depth:
        raise ValueError(
            f"ViTAdapter: {name} must be one value or a list of depth={depth}, got a list of "
            f"{len(value)}"
        )
    return list(value)
