# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The size of a token grid in, cosines and sines of its rotary position embedding out."""

import math

import torch
from torch import Tensor, nn

from ..settings import check_choice

PERIODS = ("bfloat16", "exact")

_BASE = 100.0


class RotaryEmbedding(nn.Module):
    """Rows and columns turn a quarter of each head's channels, by angles of their own periods.

    It has no weights: the periods are 100 ** (4 k / D).

    Source: Simeoni et al. 2025, arXiv:2508.10104; Su et al. 2021, arXiv:2104.09864.
    """

    def __init__(self, head_channels: int, periods: str) -> None:
        """Keep the settings.

        Args:
            head_channels: D, a multiple of 4.
            periods: "bfloat16" rounds them to it, as DINOv3's weights were trained; "exact" does
                not, as transformers and timm compute them.

        Raises:
            ValueError: The channels do not divide by 4, or the periods are unknown.
        """
        super().__init__()
        check_choice("rope_periods", periods, PERIODS)
        if head_channels % 4:
            raise ValueError(
                f"ViTAdapter: heads of a rotary trunk need a multiple of 4 channels, got "
                f"{head_channels}; change embed_dim or num_heads"
            )
        self.head_channels = head_channels
        self.periods = periods

    def forward(self, hw: tuple[int, int], x: Tensor) -> Tensor:
        """Return cosines and sines of rows, then of columns, [h + w, 2, D / 4].

        Args:
            hw: (h, w) of the token grid; its pixel centers go from -1 to 1 on each axis.
            x: Tokens that they are for: the result is on their device, and in float32, or in
                float64 for float64.
        """
        count = self.head_channels // 4
        dtype = torch.promote_types(x.dtype, torch.float32)
        # Rounded from float64, where the device has it.
        fine = torch.float32 if x.device.type == "mps" else torch.float64
        periods = _BASE ** (torch.arange(count, device=x.device, dtype=fine) / count)
        if self.periods == "bfloat16":
            periods = periods.to(torch.bfloat16)
        centers = [
            (torch.arange(size, device=x.device, dtype=dtype) + 0.5) * (2 / size) - 1 for size in hw
        ]
        angles = 2 * math.pi * torch.cat(centers)[:, None] / periods.to(dtype)
        return torch.stack([angles.cos(), angles.sin()], dim=1)

    def extra_repr(self) -> str:
        """Return the settings."""
        return f"head_channels={self.head_channels}, periods={self.periods!r}"
