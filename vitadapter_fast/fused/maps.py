# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Tokens in, maps out, and the reverse: views, for maps whose channels lie last in memory."""

import torch
from torch import Tensor


def tokens_to_map(tokens: Tensor, hw: tuple[int, int]) -> Tensor:
    """View tokens [B, h * w, C] as a map [B, C, h, w], which is channels last."""
    # In this order: transposed first, the batch stride of a single image would not be that of a
    # channels-last tensor, and torch's kernels would take it for NCHW.
    return torch.unflatten(tokens, 1, hw).permute(0, 3, 1, 2)


def map_to_tokens(feature_map: Tensor) -> Tensor:
    """View a map [B, C, h, w], which is channels last, as tokens [B, h * w, C]."""
    # In this order, for the same reason: so is its backward.
    return feature_map.permute(0, 2, 3, 1).flatten(1, 2)
