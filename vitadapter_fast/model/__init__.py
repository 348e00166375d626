# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The model: an image goes in, four feature maps come out; one file for each box of the figure."""

from .vit_adapter import ViTAdapter

__all__ = ["ViTAdapter"]
