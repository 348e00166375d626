# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""What ``weights`` gives to users, under the name that the README has for it."""

from .weights import (
    LoadReport,
    PatchMethod,
    convert_14to16,
    load_checkpoint,
    read_checkpoint,
    resample_patch_kernel,
    to_dinov3,
)

__all__ = [
    "LoadReport",
    "PatchMethod",
    "convert_14to16",
    "load_checkpoint",
    "read_checkpoint",
    "resample_patch_kernel",
    "to_dinov3",
]
