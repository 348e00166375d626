# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Other implementations of multi-scale deformable attention, each used where it can be imported.

All run at the precision of ours: those without a 16-bit form get float32, as autocast does it, and
the casts belong to their time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Sizes = tuple[tuple[int, int], ...]
Run = Callable[[Tensor, Sizes, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Peer:
    """An implementation of ``ms_deform_attn(value, level_hw, locations, weights)``.

    Attributes:
        name: Of the package.
        version: Of the package.
        run: The call.
        takes_logits: Whether it has the softmax inside and takes logits instead of weights.
    """

    name: str
    version: str
    run: Run
    takes_logits: bool = False


def attention_peers(device: str) -> list[Peer]:
    """Return the implementations found here that can run on ``device``."""
    found = [Peer("grid_sample", torch.__version__, _in_float32(_grid_sample))]
    makers: dict[str, Callable[[], Run]] = {"torch-ms-deform-attn": _torch_ms_deform_attn}
    if device == "cuda":
        makers |= {
            "deformops triton": lambda: _deformops("TRITON"),
            "deformops cuda": lambda: _deformops("CUDA"),
            "mmcv": _mmcv,
            "DCNv4": _dcnv4,
        }
    for name, make in makers.items():
        try:
            run = make()
        except ImportError:
            continue
        version = metadata.version(name.split()[0])
        found.append(Peer(name, version, run, takes_logits=name == "DCNv4"))
    return found


def _in_float32(run: Run) -> Run:
    def cast(value: Tensor, level_hw: Sizes, locations: Tensor, weights: Tensor) -> Tensor:
        if value.dtype not in (torch.float16, torch.bfloat16):
            return run(value, level_hw, locations, weights)
        return run(value.float(), level_hw, locations.float(), weights.float()).to(value.dtype)

    return cast


@cache
def _sizes(level_hw: Sizes, device: str) -> tuple[Tensor, Tensor]:
    """Return sizes and first tokens as these packages take them; made once: it waits for a GPU."""
    shapes = torch.tensor(level_hw, device=device)
    return shapes, torch.cat((shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]))


def _torch_ms_deform_attn() -> Run:
    from torch_ms_deform_attn import ms_deform_attn as theirs

    def run(value: Tensor, level_hw: Sizes, locations: Tensor, weights: Tensor) -> Tensor:
        sizes = _sizes(level_hw, str(value.device))
        return theirs(value, *sizes, locations, weights)  # type: ignore[no-any-return]

    return _in_float32(run)


def _deformops(kind: str) -> Run:
    from deformops.registry import Backend, msda

    backend: Any = Backend[kind]

    def run(value: Tensor, level_hw: Sizes, locations: Tensor, weights: Tensor) -> Tensor:
        sizes = _sizes(level_hw, str(value.device))
        return msda(value, *sizes, locations, weights, backend=backend)  # type: ignore[no-any-return]

    return run


def _mmcv() -> Run:
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction as Theirs

    def run(value: Tensor, level_hw: Sizes, locations: Tensor, weights: Tensor) -> Tensor:
        sizes = _sizes(level_hw, str(value.device))
        step = value.shape[0]
        return Theirs.apply(value, *sizes, locations, weights, step)  # type: ignore[no-any-return]

    return _in_float32(run)


def _dcnv4() -> Run:
    from DCNv4.functions import FlashDeformAttnFunction as Theirs

    def run(value: Tensor, level_hw: Sizes, locations: Tensor, logits: Tensor) -> Tensor:
        sizes = _sizes(level_hw, str(value.device))
        packed = torch.cat([locations.flatten(-3), logits.flatten(-2)], -1).to(value.dtype)
        points = logits.shape[-1]
        return Theirs.apply(value, *sizes, packed, 128, points)  # type: ignore[no-any-return]

    return run


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
