# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Other implementations of our operators, each used where it can be imported."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata

import torch
import torch.nn.functional as F
from torch import Tensor

Sizes = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Peer:
    """An implementation of ``ms_deform_attn(value, level_hw, locations, weights)``."""

    name: str
    version: str
    run: Callable[[Tensor, Sizes, Tensor, Tensor], Tensor]


def attention_peers() -> list[Peer]:
    """Return the implementations of multi-scale deformable attention found here."""
    peers = [Peer("grid_sample", torch.__version__, _grid_sample)]
    try:
        import torch_ms_deform_attn as package
    except ImportError:
        return peers

    def run(value: Tensor, level_hw: Sizes, locations: Tensor, weights: Tensor) -> Tensor:
        shapes = torch.tensor(level_hw, device=value.device)
        starts = torch.cat((shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]))
        return package.ms_deform_attn(value, shapes, starts, locations, weights)  # type: ignore[no-any-return]

    name = "torch-ms-deform-attn"
    return [*peers, Peer(name, metadata.version(name), run)]


def _grid_sample(value: Tensor, level_hw: Sizes, locations: Tensor, weights: Tensor) -> Tensor:
    """Sample level by level, as transformers and mmcv do where they have no kernel."""
    B, _, M, D = value.shape
    _, Q, _, L, P, _ = locations.shape
    grids = 2 * locations - 1
    samples = []
    for level, part in enumerate(value.split([h * w for h, w in level_hw], dim=1)):
        image = part.flatten(2).transpose(1, 2).reshape(B * M, D, *level_hw[level])
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)  # [B * M, Q, P, 2]
        samples.append(F.grid_sample(image, grid, align_corners=False))
    share = weights.transpose(1, 2).reshape(B * M, 1, Q, L * P)
    out = (torch.stack(samples, -2).flatten(-2) * share).sum(-1)
    return out.view(B, M * D, Q).transpose(1, 2).contiguous()
