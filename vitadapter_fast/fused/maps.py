# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Tokens in, maps out, and the reverse: views, for maps whose channels lie last in memory."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..native import extension, token_rows


def tokens_to_map(tokens: Tensor, hw: tuple[int, int]) -> Tensor:
    """View tokens [B, h * w, C] as a map [B, C, h, w], which is channels last."""
    # In this order: transposed first, the batch stride of a single image would not be that of a
    # channels-last tensor, and torch's kernels would take it for NCHW.
    return torch.unflatten(tokens, 1, hw).permute(0, 3, 1, 2)


def map_to_tokens(feature_map: Tensor) -> Tensor:
    """View a map [B, C, h, w], which is channels last, as tokens [B, h * w, C]."""
    # In this order, for the same reason: so is its backward.
    return feature_map.permute(0, 2, 3, 1).flatten(1, 2)


def widened(level: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a map in another dtype: unless gradients are recorded, in memory of large pages."""
    if torch.is_grad_enabled():
        return level.to(dtype)
    return extension.in_huge_pages(torch.empty_like(level, dtype=dtype)).copy_(level)


def joined(levels: Sequence[Tensor], embeds: Tensor) -> Tensor:
    """Return the tokens of all levels, each plus its own of the embeddings, one after the other.

    Args:
        levels: [B, N, C] each.
        embeds: [levels, C].
    """
    if (
        torch.compiler.is_compiling()  # asked first: their sizes may be symbols
        or torch.is_grad_enabled()
        or levels[0].nbytes < extension.LARGE_BYTES
        or not token_rows.is_ours(*levels, embeds)
    ):
        pairs = zip(levels, embeds, strict=True)
        return torch.cat([level + embed for level, embed in pairs], dim=1)
    B, _, C = levels[0].shape
    sizes = [level.shape[1] for level in levels]
    out = extension.in_huge_pages(levels[0].new_empty(B, sum(sizes), C))
    for level, embed, part in zip(levels, embeds, torch.split(out, sizes, dim=1), strict=True):
        torch.add(level, embed, out=part)
    return out
