# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""What one call carries, and every check of it, shared by the op's backends and its fake."""

from typing import NamedTuple

import torch
from torch import Tensor

from .._arguments import FLOATS, check_heads


class Call(NamedTuple):
    """One call of ``rope``.

    Attributes:
        qkv: Queries, keys and values, [B, N, 3, M, D].
        tables: Cosines and sines, [h + w, 2, D / 4].
        hw: h and w of the token grid.
        is_inverse: Whether to rotate back.
    """

    qkv: Tensor
    tables: Tensor
    hw: list[int]
    is_inverse: bool


def check(call: Call) -> None:
    """Raise ValueError unless shapes, dtypes, devices and sizes agree."""
    qkv, tables, hw, _ = call
    if len(hw) != 2 or any(size < 1 for size in hw):
        raise ValueError(f"rope: hw must be the positive (h, w) of the token grid, got {tuple(hw)}")
    check_heads("rope", qkv, "N")
    if qkv.shape[4] % 4:
        raise ValueError(
            f"rope: heads must have a multiple of 4 channels, got {qkv.shape[4]}: half of their "
            "pairs rotate by rows, half by columns"
        )
    if hw[0] * hw[1] > qkv.shape[1]:
        raise ValueError(
            f"rope: hw {tuple(hw)} must hold at most as many tokens as qkv, {qkv.shape[1]}"
        )
    wanted = (hw[0] + hw[1], 2, qkv.shape[4] // 4)
    if tuple(tables.shape) != wanted:
        raise ValueError(
            f"rope: tables must be {wanted}, [h + w, 2, D / 4], to match hw and qkv, got "
            f"{tuple(tables.shape)}"
        )
    if qkv.dtype not in FLOATS:
        raise ValueError(f"rope: qkv must be a floating tensor, got {qkv.dtype}")
    compute = torch.promote_types(qkv.dtype, torch.float32)
    if tables.dtype != compute:
        raise ValueError(f"rope: tables must be {compute} for {qkv.dtype} qkv, got {tables.dtype}")
    if tables.device != qkv.device:
        raise ValueError(f"rope: tables must be on {qkv.device} with qkv, got {tables.device}")


def new_outputs(call: Call) -> Tensor:
    """Return memory for the rotated queries, rotated keys and values, [B, N, 3, M, D]."""
    return call.qkv.new_empty(call.qkv.shape)
