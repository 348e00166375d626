# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The name of a published model in, the model out."""

import os
from typing import Any

from .config import PRESETS, check_choice
from .vit_adapter import ViTAdapter


def vit_adapter(
    size: str, pretrained: str | os.PathLike[str] | None = None, **overrides: Any
) -> ViTAdapter:
    """Build a published model, in training mode, in float32 on the default device.

    Args:
        size: "s", "b", "l" or "g".
        pretrained: What ``load_checkpoint`` takes (file, folder, name or address), or None for
            random weights.
        **overrides: Keywords of ``ViTAdapter`` that replace the preset's.

    Raises:
        TypeError: A keyword is unknown.
        ValueError: There is no such size; a setting is out of range or disagrees with another.
        CheckpointError: ``pretrained`` cannot be read or does not fit.
    """
    check_choice("size", size, tuple(PRESETS))
    return ViTAdapter(**{**PRESETS[size].model_kwargs(), "pretrained": pretrained, **overrides})


def vit_adapter_s(pretrained: str | os.PathLike[str] | None = None, **overrides: Any) -> ViTAdapter:
    """Build ViT-Adapter-S: 28.0M parameters, 384 channels; all else as ``vit_adapter``."""
    return vit_adapter("s", pretrained, **overrides)


def vit_adapter_b(pretrained: str | os.PathLike[str] | None = None, **overrides: Any) -> ViTAdapter:
    """Build ViT-Adapter-B: 100.4M parameters, 768 channels; all else as ``vit_adapter``."""
    return vit_adapter("b", pretrained, **overrides)


def vit_adapter_l(pretrained: str | os.PathLike[str] | None = None, **overrides: Any) -> ViTAdapter:
    """Build ViT-Adapter-L: 327.8M parameters, 1024 channels; all else as ``vit_adapter``."""
    return vit_adapter("l", pretrained, **overrides)


def vit_adapter_g(pretrained: str | os.PathLike[str] | None = None, **overrides: Any) -> ViTAdapter:
    """Build ViT-Adapter-g: 1187.1M parameters, 1536 channels; all else as ``vit_adapter``."""
    return vit_adapter("g", pretrained, **overrides)
