# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A deformable attention between its norms and its residual: for injectors and extractors."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ._choice import touched_reason
from .form import dtype_reason, form_of, mode_reason
from .linear import norm_linear, residual_linear


def unsupported_reason(owner: Any, query: Tensor, feature: Tensor) -> str | None:
    """Return why an ``Injector`` or ``Extractor`` calls its modules for these tokens, or None."""
    if (reason := mode_reason(query) or touched_reason(owner)) is not None:
        return reason
    weight = owner.query_norm.weight
    return dtype_reason(query, weight) or dtype_reason(feature, weight)


def add_attention(
    attn: Any,
    query: Tensor,
    query_hw: Sequence[tuple[int, int]],
    query_norm: nn.LayerNorm,
    feature: Tensor,
    level_hw: Sequence[tuple[int, int]],
    feature_norm: nn.LayerNorm,
    gamma: Tensor | None = None,
) -> Tensor:
    """Return query + gamma * attn(query_norm(query), feature_norm(feature)), [B, Q, C].

    Args:
        attn: A ``DeformAttn``.
        query: [B, Q, C].
        query_hw: (h, w) of the query grids; products sum to Q.
        query_norm: Normalization of the queries.
        feature: [B, S, C].
        level_hw: (h, w) of the value maps; products sum to S.
        feature_norm: Normalization of the features.
        gamma: [C], or None for 1.
    """
    form = form_of(query, query_norm.weight)
    heads = (attn.num_heads, attn.num_levels, attn.num_points)
    value, _ = norm_linear(
        form_of(feature, feature_norm.weight), feature, feature_norm, attn.value_proj
    )
    # The kernels read both where a joint product leaves them.
    offsets, logits, query = norm_linear(
        form, query, query_norm, attn.sampling_offsets, attn.attention_weights
    )
    offsets = torch.unflatten(offsets, 2, (*heads, 2))
    logits = torch.unflatten(logits, 2, heads)
    with form.autocast:
        attended = ops.ms_deform_attn_grid(value, level_hw, query_hw, offsets, logits)
    return residual_linear(form, query, attended, attn.output_proj, gamma=gamma)
