# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Maps in, maps of another size out, bilinearly, with gradients that compilers keep."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def resize(small: Tensor, hw: Sequence[int]) -> Tensor:
    """Return F.interpolate(small, hw, mode="bilinear", align_corners=False).

    By two matrix products where torch's compiler records gradients, for it loses that of a resize
    (2.13, on CPUs, where it is added to another one in a kernel with a batch norm's);
    tests/model/test_model_compiled.py tells whether it still does so.

    Args:
        small: [B, C, h, w].
        hw: (H, W).
    """
    if tuple(small.shape[2:]) == tuple(hw):
        return small
    if not (torch.compiler.is_compiling() and torch.is_grad_enabled()):
        return F.interpolate(small, hw, mode="bilinear", align_corners=False)
    rows, columns = (shares(*sizes, small) for sizes in zip(hw, small.shape[2:], strict=True))
    # Small matrices times maps that are channels last: along the columns, then along the rows.
    wide = torch.matmul(columns, small.permute(0, 2, 3, 1))  # [B, h, W, C]
    tall = torch.matmul(rows, wide.flatten(2))  # [B, H, W * C]
    return torch.unflatten(tall, 2, wide.shape[2:]).permute(0, 3, 1, 2)


def shares(size: int, small_size: int, like: Tensor) -> Tensor:
    """Return the share that each of a few pixels has in each of many, [size, small_size]."""
    unit = torch.eye(small_size, dtype=like.dtype, device=like.device)
    return F.interpolate(unit[None], size, mode="linear", align_corners=False)[0].t()
