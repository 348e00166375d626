# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A transformer block whose norms, LayerScale and residuals are part of its linear layers."""

from typing import Any

from torch import Tensor, nn

from ._choice import touched_reason
from .attention import attend
from .drop_path import is_dropped, pass_by
from .linear import Form, dtype_reason, form_of, mode_reason, norm_linear, residual_linear
from .rotation import by_heads


def unsupported_reason(block: Any, x: Tensor) -> str | None:
    """Return why a ``Block`` calls its modules for these tokens, or None."""
    return (
        mode_reason(x)
        or touched_reason(block)
        or _dropout_reason(block.attn.proj_drop, block.mlp.drop)
        or dtype_reason(x, block.norm1.weight)
    )


def _dropout_reason(*layers: nn.Dropout) -> str | None:
    for layer in layers:
        if layer.training and layer.p > 0.0:
            return "dropout is active"
    return None


def forward(block: Any, x: Tensor, hw: tuple[int, int], rope: Tensor | None) -> Tensor:
    """Return what a ``Block`` makes of tokens [B, N, C]."""
    form = form_of(x, block.norm1.weight)
    kept = block.drop_path.factors(x) if block.drop_path.training else None
    if kept is not None and is_dropped(kept):
        x = pass_by(x, block.norm1, block.attn, block.gamma1)
    else:
        x = _add_attention(form, block.attn, x, hw, rope, block.norm1, block.gamma1, kept)
    kept = block.drop_path.factors(x) if block.drop_path.training else None
    if kept is not None and is_dropped(kept):
        return pass_by(x, block.norm2, block.mlp, block.gamma2)
    return _add_feed_forward(form, block.mlp, x, block.norm2, block.gamma2, kept)


def _add_attention(
    form: Form,
    attn: Any,
    x: Tensor,
    hw: tuple[int, int],
    rope: Tensor | None,
    norm: nn.LayerNorm,
    gamma: Tensor | None,
    kept: Tensor | None,
) -> Tensor:
    qkv, x = norm_linear(form, x, norm, attn.qkv)
    dropout = attn.attn_drop if attn.training else 0.0
    attended = attend(by_heads(attn, qkv, hw, rope), hw, attn.window_size, dropout)
    return residual_linear(form, x, attended, attn.proj, gamma=gamma, kept=kept)


def _add_feed_forward(
    form: Form,
    mlp: Any,
    x: Tensor,
    norm: nn.LayerNorm,
    gamma: Tensor | None,
    kept: Tensor | None,
) -> Tensor:
    first, activation, last = (
        (mlp.w12, "swiglu", mlp.w3) if hasattr(mlp, "w12") else (mlp.fc1, "gelu", mlp.fc2)
    )
    hidden, x = norm_linear(form, x, norm, first)
    return residual_linear(form, x, hidden, last, activation=activation, gamma=gamma, kept=kept)
