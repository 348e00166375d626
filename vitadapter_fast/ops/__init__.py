# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The operators: tensors in, tensors out, on whichever backend can run the call."""

from ._backends import backend
from ._triton import tuning
from .batch_norm import batch_norm
from .dwconv_gelu import dwconv_gelu
from .int8_linear import int8_linear, int8_weight
from .ms_deform_attn import ms_deform_attn, ms_deform_attn_grid
from .patch_embed import patch_embed
from .rope import rope
from .window_attention import window_attention

__all__ = [
    "backend",
    "batch_norm",
    "dwconv_gelu",
    "int8_linear",
    "int8_weight",
    "ms_deform_attn",
    "ms_deform_attn_grid",
    "patch_embed",
    "rope",
    "tuning",
    "window_attention",
]
