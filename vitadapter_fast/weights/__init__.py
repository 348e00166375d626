# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: a file, name or address in any known form in; its weights, in a model, out."""

from .convert import convert_14to16
from .dinov3_adapter import to_dinov3
from .load import LoadReport, load_checkpoint
from .patch_kernel import PatchMethod, resample_patch_kernel
from .read import read_checkpoint

__all__ = [
    "LoadReport",
    "PatchMethod",
    "convert_14to16",
    "load_checkpoint",
    "read_checkpoint",
    "resample_patch_kernel",
    "to_dinov3",
]
