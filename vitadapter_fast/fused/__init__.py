# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Boxes of the model in fewer passes over memory: the numbers of its modules, called one by one.

One box, one file: ``unsupported_reason(module, ...)`` is None where the box runs, else the sentence
why its modules are called instead; ``forward(module, ...)`` is the box.
"""

from . import block, extractor, injector, pyramid, spatial_prior
from ._choice import LINEARS, NORMS, readable, runs, touched_reason
from .attention import attend, by_heads
from .checkpointing import recompute
from .group_norm import GroupNorm
from .int8_linear import Int8Linear
from .maps import joined
from .portions import in_portions
from .resize import resize

BOXES = (block, extractor, injector, pyramid, spatial_prior)

__all__ = [
    "BOXES",
    "GroupNorm",
    "Int8Linear",
    "LINEARS",
    "NORMS",
    "attend",
    "block",
    "by_heads",
    "extractor",
    "in_portions",
    "injector",
    "joined",
    "pyramid",
    "readable",
    "recompute",
    "resize",
    "runs",
    "spatial_prior",
    "touched_reason",
]
