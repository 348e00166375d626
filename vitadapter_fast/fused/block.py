# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A transformer block whose norms, LayerScale and residuals are part of its linear layers."""

from typing import Any

from torch import Tensor

from ._choice import touched_reason
from .attention import attend, by_heads
from .drop_path import is_dropped, pass_by
from .form import dtype_reason, form_of, mode_reason
from .linear import norm_linear, residual_linear


def unsupported_reason(block: Any, x: Tensor) -> str | None:
    """Return why a ``Block`` calls its modules for these tokens, or None."""
    return mode_reason(x) or touched_reason(block) or dtype_reason(x, block.norm1.weight)


def forward(block: Any, x: Tensor, hw: tuple[int, int], rope: Tensor | None) -> Tensor:
    """Return what a ``Block`` makes of tokens [B, N, C]."""
    attn, mlp = block.attn, block.mlp
    kept = block.drop_path.factors(x) if block.drop_path.training else None
    form = form_of(x, block.norm1.weight)
    if kept is not None and is_dropped(kept):
        x = pass_by(x, block.norm1, attn, block.gamma1)
    else:
        qkv, x = norm_linear(form, x, block.norm1, attn.qkv)
        with form.autocast:
            heads = by_heads(attn, qkv, hw, rope)
            dropout = attn.attn_drop if attn.training else 0.0
            attended = attend(heads, hw, attn.window_size, dropout)
        x = residual_linear(form, x, attended, attn.proj, gamma=block.gamma1, kept=kept)

    kept = block.drop_path.factors(x) if block.drop_path.training else None
    if kept is not None and is_dropped(kept):
        return pass_by(x, block.norm2, mlp, block.gamma2)
    first, activation, last = (
        (mlp.w12, "swiglu", mlp.w3) if hasattr(mlp, "w12") else (mlp.fc1, "gelu", mlp.fc2)
    )
    hidden, x = norm_linear(form, x, block.norm2, first)
    return residual_linear(
        form, x, hidden, last, activation=activation, gamma=block.gamma2, kept=kept
    )
