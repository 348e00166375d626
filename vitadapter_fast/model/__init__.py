# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The model: an image goes in, four feature maps come out; one file for each box of the figure."""

from .config import PRESETS, Preset
from .presets import vit_adapter_b, vit_adapter_g, vit_adapter_l, vit_adapter_s
from .vit_adapter import ViTAdapter

__all__ = [
    "PRESETS",
    "Preset",
    "ViTAdapter",
    "vit_adapter_b",
    "vit_adapter_g",
    "vit_adapter_l",
    "vit_adapter_s",
]
