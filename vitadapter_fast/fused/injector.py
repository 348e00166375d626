# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""An injector, with its norms in the projections and its gamma in the last of them."""

from typing import Any

from torch import Tensor

from .deform_attn import add_attention, unsupported_reason

__all__ = ["forward", "unsupported_reason"]


def forward(injector: Any, x: Tensor, c: Tensor, grids: Any) -> Tensor:
    """Return what an ``Injector`` makes of ViT tokens ``x`` and prior tokens ``c``."""
    return add_attention(
        injector.attn,
        x,
        (grids.vit_hw,),
        injector.query_norm,
        c,
        grids.prior_hw,
        injector.feat_norm,
        injector.gamma,
    )
