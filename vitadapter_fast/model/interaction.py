# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""ViT tokens and prior tokens in, both after one stage out."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import fused
from .extractor import Extractor
from .grid import Grids, split_prefix
from .injector import Injector
from .trunk import recorded
from .vit import Block


@fused.readable()
class Interaction(nn.Module):
    """Inject the prior into the ViT, run the ViT blocks of the stage, extract the prior again.

    Source: Chen et al. 2022, arXiv:2205.08534, section 3.4.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        num_points: int,
        deform_ratio: float,
        injector: bool,
        init_value: float,
        with_cffn: bool,
        cffn_ratio: float,
        drop_path: float,
        num_extra: int,
        has_frozen_vit: bool,
        with_cp: bool,
    ) -> None:
        """Create one stage; its ViT blocks belong to the ViT and come with each call.

        Args:
            dim: Channels of a token.
            num_heads: Heads of the deformable attention.
            num_points: Its points for each head and level.
            deform_ratio: Its value channels, as a share of ``dim``.
            injector: Whether there is an injector.
            init_value: Where its gamma starts.
            with_cffn: Whether extractors have a feed-forward.
            cffn_ratio: Its hidden channels, as a share of ``dim``.
            drop_path: Rate at which a sample skips it in training.
            num_extra: Extractors after the first; the last stage has two.
            has_frozen_vit: Whether injector and blocks record no gradients where nothing trains.
            with_cp: Whether training recomputes activations instead of keeping them.
        """
        super().__init__()
        attention: dict[str, Any] = {
            "num_heads": num_heads,
            "num_points": num_points,
            "deform_ratio": deform_ratio,
        }
        ffn: dict[str, Any] = {
            "with_cffn": with_cffn,
            "cffn_ratio": cffn_ratio,
            "drop_path": drop_path,
        }
        self.injector = Injector(dim, **attention, init_value=init_value) if injector else None
        self.extractor = Extractor(dim, **attention, **ffn)
        self.extra_extractors = nn.ModuleList(
            Extractor(dim, **attention, **ffn) for _ in range(num_extra)
        )
        self.has_frozen_vit = has_frozen_vit
        self.with_cp = with_cp

    def forward(
        self,
        x: Tensor,
        c: Tensor,
        blocks: Sequence[Block],
        grids: Grids,
        rope: Tensor | None = None,
        norm: nn.Module | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run the stage.

        Args:
            x: ViT tokens, [B, N, C]: the h * w of the image, then the prefix.
            c: Prior tokens, [B, Q, C].
            blocks: ViT blocks of the stage.
            grids: Sizes of the token grids.
            rope: Rotary positions of the ViT's grid, if it has some.
            norm: What the image's tokens pass on their way out of the ViT, or None.

        Returns:
            ViT tokens and prior tokens after the stage, in shape as they came; and the ViT tokens
            that the adapter sees, [B, h * w, C].
        """
        parts = (x, self.injector, *blocks, norm)
        with recorded(*parts, is_frozen=self.has_frozen_vit):
            if self.injector is not None:
                patches, prefix = split_prefix(x, grids)
                patches = self._run(self.injector, patches, c, grids)
                x = patches if prefix is None else torch.cat([patches, prefix], dim=1)
            for block in blocks:
                x = self._run(block, x, grids.vit_hw, *(() if rope is None else (rope,)))
            feature, _ = split_prefix(x, grids)
            if norm is not None:
                feature = norm(feature)
        for extractor in (self.extractor, *self.extra_extractors):
            c = self._run(extractor, c, feature, grids)
        return x, c, feature

    def _run(self, module: nn.Module, *args: Any) -> Tensor:
        return fused.recompute(module, *args) if self.with_cp else module(*args)  # type: ignore[no-any-return]
