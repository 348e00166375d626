# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""ViT-Adapter backbones on DINOv2 weights, with fast kernels where the time goes."""

from .builders import (
    vit_adapter,
    vit_adapter_b,
    vit_adapter_dinov3,
    vit_adapter_g,
    vit_adapter_l,
    vit_adapter_s,
)
from .errors import BackendUnavailable, CheckpointError
from .model import ViTAdapter
from .model.quantize import quantize
from .native.memory import free_kept_memory, keep_freed_memory, limit_kept_memory
from .ops import backend, ms_deform_attn, ms_deform_attn_grid, patch_embed, tuning
from .version import __version__

__all__ = [
    "BackendUnavailable",
    "CheckpointError",
    "ViTAdapter",
    "__version__",
    "backend",
    "free_kept_memory",
    "keep_freed_memory",
    "limit_kept_memory",
    "ms_deform_attn",
    "ms_deform_attn_grid",
    "patch_embed",
    "quantize",
    "tuning",
    "vit_adapter",
    "vit_adapter_b",
    "vit_adapter_dinov3",
    "vit_adapter_g",
    "vit_adapter_l",
    "vit_adapter_s",
]
