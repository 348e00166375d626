# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""An extractor, with its norms in the projections and its residuals in one buffer."""

from typing import Any

import torch
from torch import Tensor

from ..native import tensors
from ..ops import dwconv_gelu
from .deform_attn import add_attention, unsupported_reason
from .drop_path import is_dropped, pass_by
from .form import form_of
from .linear import norm_linear, residual_linear

__all__ = ["forward", "unsupported_reason"]


def forward(extractor: Any, c: Tensor, x: Tensor, grids: Any) -> Tensor:
    """Return what an ``Extractor`` makes of prior tokens ``c`` and ViT tokens ``x``."""
    c = add_attention(
        extractor.attn,
        c,
        grids.prior_hw,
        extractor.query_norm,
        x,
        (grids.vit_hw,),
        extractor.feat_norm,
    )
    if not extractor.with_cffn:
        return c
    ffn = extractor.ffn
    kept = extractor.drop_path.factors(c) if extractor.drop_path.training else None
    if kept is not None and is_dropped(kept):
        return pass_by(c, extractor.ffn_norm, ffn)
    form = form_of(c, extractor.ffn_norm.weight)
    hidden, c = norm_linear(form, c, extractor.ffn_norm, ffn.fc1)
    conv = ffn.dwconv.dwconv
    with form.autocast:
        bias = None if conv.bias is None else conv.bias.to(hidden.dtype)
        hidden = dwconv_gelu(hidden, grids.prior_hw, conv.weight.to(hidden.dtype), bias)
    # The attention made these tokens, and nobody else has seen them. Only the CPU gains.
    overwrites = tensors.is_on_cpu(c) and not torch.is_grad_enabled()
    return residual_linear(form, c, hidden, ffn.fc2, kept=kept, overwrites=overwrites)
