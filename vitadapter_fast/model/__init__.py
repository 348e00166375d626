# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The model: an image goes in, four feature maps come out; one file for each box of the figure."""

from ..presets import DINOV3_PRESETS, PRESETS, DINOv3Preset, Preset
from .build import vit_adapter_b, vit_adapter_dinov3, vit_adapter_g, vit_adapter_l, vit_adapter_s
from .vit_adapter import ViTAdapter

__all__ = [
    "DINOV3_PRESETS",
    "DINOv3Preset",
    "PRESETS",
    "Preset",
    "ViTAdapter",
    "vit_adapter_b",
    "vit_adapter_dinov3",
    "vit_adapter_g",
    "vit_adapter_l",
    "vit_adapter_s",
]
