# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A model that is small and has every part, and images for it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from vitadapter_fast import ViTAdapter

TINY: dict[str, Any] = {
    "pretrain_size": 64,
    "img_size": 64,
    "embed_dim": 32,
    "depth": 4,
    "num_heads": 2,
    "conv_inplane": 8,
    "deform_num_heads": 2,
    "deform_ratio": 0.5,
    "interaction_indexes": [[0, 0], [1, 1], [2, 2], [3, 3]],
}
# Windows that do and do not divide the grid, and global attention.
WINDOWED: dict[str, Any] = {
    **TINY,
    "window_attn": [True, False, True, False],
    "window_size": [3, None, 4, None],
}


@pytest.fixture
def tiny() -> Callable[..., ViTAdapter]:
    """Return a builder of a small model whose every part has an effect, from a fixed seed."""

    def build(**overrides: Any) -> ViTAdapter:
        torch.manual_seed(0)
        model = ViTAdapter(**{**WINDOWED, "init_values": 1.0, **overrides})
        with torch.no_grad():
            torch.nn.init.normal_(model.pos_embed, std=0.5)
            for name, parameter in model.named_parameters():
                if name.endswith(("sampling_offsets.weight", "attention_weights.weight")):
                    torch.nn.init.normal_(parameter, std=0.1)
        return model

    return build


@pytest.fixture
def image() -> Tensor:
    """Return two images of 64 x 96."""
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
