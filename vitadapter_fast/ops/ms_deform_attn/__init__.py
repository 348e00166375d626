# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Multi-scale deformable attention: value maps, points, weights -> attended features.

Two entry points share one body. ``ms_deform_attn`` takes points and weights as they are (what
Deformable-DETR calls); ``ms_deform_attn_grid`` takes the raw projections of queries on regular
grids and does the coordinate arithmetic and the softmax inside: neither is written to memory.
"""

import logging
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ...native import tensors
from .._arguments import check_types, flat_pairs
from .._library import define, lower, lower_tensors
from . import cpu, cuda, reference, triton
from ._call import Call, backward_flops, check, classic_call, flops, grid_call, new_outputs

# cpu before triton, which runs on CPU tensors too where its interpreter is on.
BACKENDS = (cuda, cpu, triton, reference)
# Where no specialized CUDA kernel takes a call.
_TRITON_BEFORE_CUDA = (cpu, triton, cuda, reference)

_log = logging.getLogger("vitadapter_fast")


def ms_deform_attn(
    value: Tensor,
    level_hw: Sequence[tuple[int, int]],
    locations: Tensor,
    weights: Tensor,
    *,
    backend: str | None = None,
) -> Tensor:
    """Sum bilinear samples of flattened feature maps at given points.

    Args:
        value: Maps, [B, S, M, D] or [B, S, M * D]; float32, float16, bfloat16 or float64.
        level_hw: (height, width) of each level; products sum to S.
        locations: Points as (x, y), [B, Q, M, L, P, 2]; float32, or float64 with a float64 value.
            0 and 1 are outer pixel edges; maps are zero outside. NaN and infinity read zero.
        weights: Attention, [B, Q, M, L, P]; used as given; float32 or the dtype of ``value``.
        backend: A name, or None for the first that can run.

    Returns:
        [B, Q, M * D] in the dtype of ``value``, accumulated in float32 (float64 for float64).

    Raises:
        ValueError: A shape, dtype or device disagrees.
        BackendUnavailable: The named backend cannot run; says why.

    Source: Zhu et al. 2021, arXiv:2010.04159, eq. 3.
    """
    op = "ms_deform_attn"
    check_types(op, backend, value=value, locations=locations, weights=weights)
    flat = flat_pairs(op, "level_hw", level_hw)
    return _classic(value, flat, locations, weights, backend=backend)  # type: ignore[no-any-return]


def ms_deform_attn_grid(
    value: Tensor,
    level_hw: Sequence[tuple[int, int]],
    query_hw: Sequence[tuple[int, int]],
    offsets: Tensor,
    logits: Tensor,
    *,
    backend: str | None = None,
) -> Tensor:
    """Sum bilinear samples around queries that lie on regular grids, softmax included.

    The query at row i, column j of an (h, w) grid looks at ((j + .5) / w, (i + .5) / h) of every
    level; offsets are added in pixels of that level.

    Args:
        value: Maps, [B, S, M, D] or [B, S, M * D]; float32, float16, bfloat16 or float64.
        level_hw: (height, width) of each level; products sum to S.
        query_hw: (height, width) of each query grid; products sum to Q.
        offsets: (x, y) in pixels of the level, [B, Q, M, L, P, 2]; float32 or the dtype of
            ``value``. Maps are zero outside. NaN and infinity read zero.
        logits: [B, Q, M, L, P]; the softmax runs over L * P jointly; float32 or the dtype of
            ``value``.
        backend: A name, or None for the first that can run.

    Returns:
        [B, Q, M * D] in the dtype of ``value``; coordinates, softmax and sums in float32 (float64
        for float64). Backward recomputes them: only the three inputs are saved.

    Raises:
        ValueError: A shape, dtype or device disagrees.
        BackendUnavailable: The named backend cannot run; says why.

    Source: Zhu et al. 2021, arXiv:2010.04159, eq. 3; grids: Chen et al. 2022, arXiv:2205.08534.
    """
    op = "ms_deform_attn_grid"
    check_types(op, backend, value=value, offsets=offsets, logits=logits)
    flat, queries = flat_pairs(op, "level_hw", level_hw), flat_pairs(op, "query_hw", query_hw)
    return _grid(value, flat, queries, offsets, logits, backend=backend)  # type: ignore[no-any-return]


def _order(call: Call, is_backward: bool) -> Sequence[ModuleType]:
    if tensors.device_type(call.value) != "cuda":
        return BACKENDS
    if (reason := cuda.generic_reason(call, is_backward=is_backward)) is None:
        return BACKENDS
    _log.debug("%s: triton before cuda: %s", call.op, reason)
    return _TRITON_BEFORE_CUDA


def _lower_classic(dtype: torch.dtype, inputs: Sequence[Any]) -> Sequence[Any]:
    value, level_hw, locations, weights = inputs
    # Locations stay float32: rounded to bfloat16 they are up to half a pixel off at width 256.
    return lower(value, dtype), level_hw, lower(locations, torch.float32), lower(weights, dtype)


_classic = define(
    "ms_deform_attn",
    "Tensor value, SymInt[] level_hw, Tensor locations, Tensor weights",
    "Tensor",
    call_of=classic_call,
    check=check,
    new_outputs=new_outputs,
    flops=flops,
    backward_flops=backward_flops,
    backends=BACKENDS,
    order=_order,
    lower_all=_lower_classic,
)
_grid = define(
    "ms_deform_attn_grid",
    "Tensor value, SymInt[] level_hw, SymInt[] query_hw, Tensor offsets, Tensor logits",
    "Tensor",
    call_of=grid_call,
    check=check,
    new_outputs=new_outputs,
    flops=flops,
    backward_flops=backward_flops,
    backends=BACKENDS,
    order=_order,
    lower_all=lower_tensors,
)
