# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The name of a published model in, the model out."""

import inspect
import os
from typing import Any

from .model import ViTAdapter
from .presets import DINOV3_PRESETS, PRESETS, DINOv3Preset, Preset
from .settings import check_choice, check_flags

_DINOV3 = "dinov3-"
# All published models by name, as commands and detectors take them.
MODELS = (*PRESETS, *(_DINOV3 + size for size in DINOV3_PRESETS))


def preset_of(name: str) -> Preset | DINOv3Preset:
    """Return the settings of one of ``MODELS``."""
    return PRESETS[name] if name in PRESETS else DINOV3_PRESETS[name.removeprefix(_DINOV3)]


def model_kwargs(size: str, **overrides: Any) -> dict[str, Any]:
    """Return the keywords of ``ViTAdapter`` that build one of ``MODELS``.

    Args:
        size: Its name.
        **overrides: Keywords that replace the preset's. Of DINOv3's models, whether there are
            ``injectors`` decides more than that keyword.

    Raises:
        TypeError: A keyword is unknown.
        ValueError: There is no such size.
    """
    check_choice("size", size, MODELS)
    unknown = overrides.keys() - inspect.signature(ViTAdapter).parameters.keys()
    if unknown:
        raise TypeError(f"ViTAdapter: got an unexpected keyword argument {min(unknown)!r}")
    preset = preset_of(size)
    if isinstance(preset, Preset):
        return {**preset.model_kwargs(), **overrides}
    injectors = overrides.get("injectors", False)
    check_flags(injectors=injectors)
    return {**preset.model_kwargs(injectors=bool(injectors)), **overrides}


def vit_adapter(
    size: str, pretrained: str | os.PathLike[str] | None = None, **overrides: Any
) -> ViTAdapter:
    """Build a published model, in training mode, of the default dtype and device.

    Args:
        size: "s", "b", "l" or "g", on DINOv2; or "dinov3-s" and so on, for which see
            ``vit_adapter_dinov3``.
        pretrained: What ``load_checkpoint`` takes (file, folder, name or address), or None for
            random weights.
        **overrides: Keywords of ``ViTAdapter`` that replace the preset's.

    Raises:
        TypeError: A keyword is unknown.
        ValueError: There is no such size; a setting is out of range or disagrees with another.
        CheckpointError: ``pretrained`` cannot be read or does not fit.
    """
    return ViTAdapter(**{"pretrained": pretrained, **model_kwargs(size, **overrides)})


def vit_adapter_dinov3(
    size: str,
    pretrained: str | os.PathLike[str] | None = None,
    *,
    injectors: bool = False,
    **overrides: Any,
) -> ViTAdapter:
    """Build an adapter on a DINOv3 ViT, in training mode, of the default dtype and device.

    Args:
        size: "s", "s+", "b", "l", "h+" or "7b", as published; "t" for ViTs of 192 channels.
        pretrained: What ``load_checkpoint`` takes (file, folder, name or address), or None for
            random weights.
        injectors: False for DINOv3's own adapter: the ViT, frozen, sees nothing of the prior, and
            the adapter sees its tokens behind its last norm. True for ViT-Adapter's: the prior
            flows into the ViT, which trains; cls and register tokens attend along.
        **overrides: Keywords of ``ViTAdapter`` that replace the preset's, such as
            ``frozen_vit=False``.

    Raises:
        TypeError: A keyword is unknown.
        ValueError: There is no such size; a setting is out of range or disagrees with another.
        CheckpointError: ``pretrained`` cannot be read or does not fit.
    """
    check_choice("size", size, tuple(DINOV3_PRESETS))
    return vit_adapter(_DINOV3 + size, pretrained, injectors=injectors, **overrides)


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
