# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Tokens of a batch in, portions of it out that a CPU handles best."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..native import tensors
from ..native.memory import HEAP_BYTES
from ..ops._backends import requested
from ._choice import touched_reason

# S with 8 images of 512 takes 1883 ns per pixel in one piece and 1396 in two, a training step 5297
# and 4339 (2 cores of an AMD EPYC).
_HEAP_BYTES = HEAP_BYTES


def in_portions(
    stages: Callable[[Tensor, Tensor], list[Tensor]], x: Tensor, c: Tensor, model: nn.Module
) -> list[Tensor]:
    """Return ``stages(x, c)``, called for portions of the batch whose buffers stay on the heap.

    Args:
        stages: Takes ViT tokens and prior tokens; its results have a batch dimension.
        x: ViT tokens, [B, h * w, C].
        c: Prior tokens, [B, Q, C]: the largest buffers are of their size.
        model: It calls its ``blocks`` and ``interactions``.
    """
    if c.shape[0] < 2 or device_reason(c) is not None:
        return stages(x, c)
    count = math.ceil(c.shape[0] / max(1, _HEAP_BYTES // c[0].nbytes))
    # Modules of others may couple the images of a batch, and hooks are to see all of them.
    if count == 1 or touched_reason(model, "blocks", "interactions") is not None:
        return stages(x, c)
    images = math.ceil(c.shape[0] / count)
    pairs = zip(torch.split(x, images), torch.split(c, images), strict=True)
    results = [stages(*pair) for pair in pairs]
    return [torch.cat(portions) for portions in zip(*results, strict=True)]


def device_reason(c: Tensor) -> str | None:
    """Return why a batch of prior tokens stays whole, whatever its size, or None."""
    if tensors.is_recorded():
        return "a compiler or tracer records it"
    if requested(None) == "reference":
        return "the reference was asked for"
    if type(c) is not Tensor or not tensors.is_on_cpu(c):
        return "only on the CPU it is worth it"
    return None
