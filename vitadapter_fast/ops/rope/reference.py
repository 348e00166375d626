# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Queries, keys and values in; the first two rotated by their positions out. The definition."""

import torch
from torch import Tensor

from ._call import Call


def unsupported_reason(call: Call) -> str | None:
    """Return None: plain PyTorch runs everywhere."""
    return None


def forward(call: Call) -> Tensor:
    """Return queries, keys and values, [B, N, 3, M, D], of which the first two are rotated."""
    qkv, tables, (h, w), is_inverse = call
    cos, sin = (_on_grid(part, h, w)[:, None, None] for part in tables.unbind(1))
    # 16-bit inputs are computed in the dtype of the tables and rounded once.
    first, second = qkv[:, : h * w, :2].to(cos.dtype).chunk(2, dim=-1)  # [B, h * w, 2, M, D / 2]
    sin = -sin if is_inverse else sin
    rotated = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    grid = torch.cat([rotated.to(qkv.dtype), qkv[:, : h * w, 2:]], dim=2)
    return torch.cat([grid, qkv[:, h * w :]], dim=1)


def _on_grid(table: Tensor, h: int, w: int) -> Tensor:
    """[h + w, K] -> [h * w, 2 * K]: of each token first its row's, then its column's."""
    rows = table[:h, None].expand(h, w, -1)
    columns = table[None, h:].expand(h, w, -1)
    return torch.cat([rows, columns], dim=2).flatten(0, 1)
