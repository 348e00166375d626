# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The smallest model that has every part, with weights that make every part count."""

from typing import Any

import torch
from tiny import TINY
from torch import nn

from vitadapter_fast import ViTAdapter

SMALLEST: dict[str, Any] = {
    **TINY,
    "depth": 2,
    "interaction_indexes": [[0, 1]],
    "window_attn": [True, False],
    "window_size": [3, None],
    "use_extra_extractor": False,
}


def smallest_model(**overrides: Any) -> ViTAdapter:
    """Fresh weights would hide much: positions and gammas of 0, points that depend on no query."""
    torch.manual_seed(0)
    model = ViTAdapter(**{**SMALLEST, **overrides}).eval()
    hidden = ("sampling_offsets.weight", "attention_weights.weight", "gamma", "pos_embed")
    for name, parameter in model.named_parameters():
        if name.endswith(hidden):
            nn.init.normal_(parameter, std=0.3)
    return model


def smallest(size: str, **overrides: Any) -> ViTAdapter:
    """Be ``vit_adapter`` of a command, for any size."""
    return smallest_model(**overrides)


def max_errors(got: Any, wanted: Any) -> list[float]:
    """Largest error of each map, relative to its peak."""
    return [
        ((torch.as_tensor(one) - other).abs().max() / other.abs().max()).item()
        for one, other in zip(got, wanted, strict=True)
    ]
