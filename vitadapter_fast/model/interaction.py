# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""ViT tokens and prior tokens in, the same two after one stage out."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from .. import fused
from .extractor import Extractor
from .grid import Grids
from .injector import Injector
from .vit import Block


@fused.readable
class Interaction(nn.Module):
    """Inject the prior into the ViT, run the ViT blocks of the stage, extract the prior again.

    Source: Chen et al. 2022, arXiv:2205.08534, section 3.4.
    """

    def __init__(
        self,
        injector: Injector,
        extractor: Extractor,
        extra_extractors: Iterable[Extractor],
        *,
        has_frozen_vit: bool,
        with_cp: bool,
    ) -> None:
        """Join the parts of one stage; its ViT blocks belong to the ViT and come with each call.

        Args:
            injector: Prior into ViT.
            extractor: ViT into prior.
            extra_extractors: More extractors after it; the last stage has two.
            has_frozen_vit: Whether injector and blocks run without recording gradients.
            with_cp: Whether training recomputes activations instead of keeping them.
        """
        super().__init__()
        self.injector = injector
        self.extractor = extractor
        self.extra_extractors = nn.ModuleList(extra_extractors)
        self.has_frozen_vit = has_frozen_vit
        self.with_cp = with_cp

    def forward(
        self, x: Tensor, c: Tensor, blocks: Sequence[Block], grids: Grids
    ) -> tuple[Tensor, Tensor]:
        """Return ViT tokens, [B, h * w, C], and prior tokens, [B, Q, C], after the stage.

        Args:
            x: ViT tokens.
            c: Prior tokens.
            blocks: ViT blocks of the stage.
            grids: Sizes of the token grids.
        """
        with recorded(x, self.injector, *blocks, is_frozen=self.has_frozen_vit):
            x = self._run(self.injector, x, c, grids)
            for block in blocks:
                x = self._run(block, x, grids.vit_hw)
        for extractor in (self.extractor, *self.extra_extractors):
            c = self._run(extractor, c, x, grids)
        return x, c

    def _run(self, module: nn.Module, *args: Any) -> Tensor:
        return fused.recompute(module, *args) if self.with_cp else module(*args)  # type: ignore[no-any-return]


def recorded(x: Tensor, *parts: nn.Module, is_frozen: bool) -> AbstractContextManager[object]:
    """Record gradients in the block as outside of it, but none of what is frozen and has none."""
    trains = not is_frozen or x.requires_grad or any(map(has_trained, parts))
    return torch.set_grad_enabled(torch.is_grad_enabled() and trains)


def has_trained(module: nn.Module) -> bool:
    """Return whether something in ``module`` takes gradients."""
    return any(parameter.requires_grad for parameter in module.parameters())
