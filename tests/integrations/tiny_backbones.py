# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Small backbones of transformers, and what tests ask of them."""

from typing import Any

import torch
from tiny import WINDOWED
from torch import Tensor, nn

from vitadapter_fast.integrations.transformers import ViTAdapterBackbone, ViTAdapterConfig

IMAGE = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))
DINOV3: dict[str, Any] = {
    "size": "dinov3-t",
    "embed_dim": 32,
    "depth": 4,
    "num_heads": 2,
    "deform_num_heads": 4,
    "interaction_indexes": [[0, 0], [1, 1], [2, 2], [3, 3]],
}
TRUNKS = {"dinov2": {**WINDOWED, "init_values": 1.0}, "dinov3": DINOV3}


def tiny_config(trunk: str = "dinov2", **overrides: Any) -> ViTAdapterConfig:
    return ViTAdapterConfig(**{**TRUNKS[trunk], **overrides})


def tiny_backbone(trunk: str = "dinov2", **overrides: Any) -> ViTAdapterBackbone:
    torch.manual_seed(0)
    return ViTAdapterBackbone(tiny_config(trunk, **overrides))


@torch.no_grad()
def maps_of(backbone: nn.Module, image: Tensor = IMAGE) -> tuple[Tensor, ...]:
    return backbone.eval()(image).feature_maps


def assert_equal(one: Any, other: Any) -> None:
    assert len(one) == len(other)
    assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))


def trained_in(backbone: nn.Module) -> set[str]:
    return {name for name, each in backbone.named_parameters() if each.requires_grad}
