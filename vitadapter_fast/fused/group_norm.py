# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A map in, the map normalized within groups of channels out."""

import torch
from torch import Tensor, nn


class GroupNorm(nn.GroupNorm):
    """torch's, without a crash of its backward on the CPU: channels last, no gradient (2.13)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalized map, [B, C, h, w]."""
        if x.is_cpu and torch.is_grad_enabled() and not x.requires_grad:
            x = x.contiguous()
        return super().forward(x)
