# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Settings of a model in; those that are wrong told, the others as modules take them out."""

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import TypeVar

T = TypeVar("T")


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
