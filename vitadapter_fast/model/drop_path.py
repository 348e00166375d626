# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A residual branch in; out the same, or in training for some samples nothing of it."""

from torch import Tensor, nn

from .. import fused


@fused.readable()
class DropPath(nn.Module):
    """Drop the branch of some samples in training, and scale up that of the others.

    Source: Huang et al. 2016, arXiv:1603.09382.
    """

    def __init__(self, rate: float) -> None:
        """Drop at ``rate``, in [0, 1)."""
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        """Return a branch, [B, N, C], times a factor for each sample."""
        factors = self.factors(branch)
        return branch if factors is None else branch * factors

    def factors(self, x: Tensor) -> Tensor | None:
        """Draw a factor for each sample of ``x``, [B, 1, 1]; None for 1."""
        if self.rate == 0.0 or not self.training:
            return None
        keep = 1.0 - self.rate
        return x.new_empty(x.shape[0], 1, 1).bernoulli_(keep).div_(keep)
