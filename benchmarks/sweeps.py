# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Shapes along which a choice of the library turns: what its constants are set by.

``sweep_value_gradient``: atomics against records, over points for a value pixel. ``sweep_generic``:
shapes that have a specialized CUDA kernel and shapes without one, CUDA against Triton.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from cases import AttnCase, make_inputs
from problems import OURS, Problem, backends
from torch import Tensor
from worker import Spec

from vitadapter_fast import __version__, ops
from vitadapter_fast.ops.ms_deform_attn import _value_gradient

ATOMICS, RECORDS = f"{OURS} atomics", f"{OURS} records"
# POINTS_PER_PIXEL with which the rule chooses the one and the other.
_THRESHOLDS = {ATOMICS: math.inf, RECORDS: 0.0}
# Of B; every query has 4 points on one level, as in the extractor.
_HEADS, _CHANNELS, _POINTS = 12, 32, 4
# Queries for a value pixel, as (rows, columns): half of one to 16, times 4 points. The models have
# 2.3 points for a pixel in the injector and 84 in the extractor.
_DENSITIES = ((0.5, 1), (1, 1), (1, 2), (2, 2), (2, 4), (4, 4))


def value_gradient_shapes(side: int) -> dict[str, dict[str, Any]]:
    """Return the shapes of the sweep over a value map of ``side`` x ``side``, by name."""
    shapes = {}
    for rows, columns in _DENSITIES:
        query_hw = (int(side * rows), int(side * columns))
        points = _POINTS * rows * columns
        shapes[f"{points:g} points per pixel"] = {"side": side, "query_hw": query_hw}
    return shapes


def points_per_pixel(shape: str) -> float:
    """Return what a name of ``value_gradient_shapes`` says."""
    return float(shape.split(" ")[0])


def crossover(times: Sequence[tuple[float, float, float]]) -> float:
    """Return the POINTS_PER_PIXEL above which records are the faster.

    Args:
        times: (points per pixel, time of atomics, time of records), in any order.

    Returns:
        The geometric mean of the last density at which atomics win and the next; 0 where they never
        do, infinity where they win at the highest.
    """
    ordered = sorted(times)
    wins = [index for index, (_, atomics, records) in enumerate(ordered) if atomics <= records]
    if not wins:
        return 0.0
    if wins[-1] == len(ordered) - 1:
        return math.inf
    return math.sqrt(ordered[wins[-1]][0] * ordered[wins[-1] + 1][0])


def generic_shapes(side: int) -> dict[str, dict[str, Any]]:
    """Return shapes with and without a specialized kernel, from a finest level of ``side``."""
    levels = [max(1, side >> level) for level in range(5)]

    def shape(count: int, points: int = 4, channels: int = 32) -> dict[str, Any]:
        return {"levels": levels[:count], "points": points, "channels": channels}

    return {
        "4 levels, specialized": shape(4),
        "5 levels": shape(5),
        "2 levels": shape(2),
        "8 points": shape(4, points=8),
        "24 channels": shape(4, channels=24),
    }


def _value_gradient_problem(spec: Spec) -> Problem:
    side, query_hw = spec.shape["side"], tuple(spec.shape["query_hw"])
    case = AttnCase("", 1, _HEADS, _CHANNELS, _POINTS, ((side, side),), (query_hw,))
    if spec.contender in _THRESHOLDS:
        # For the whole process, which does nothing else.
        _value_gradient.POINTS_PER_PIXEL = _THRESHOLDS[spec.contender]  # type: ignore[assignment]
    return _problem(case, {name: None for name in _THRESHOLDS})


def _generic_problem(spec: Spec) -> Problem:
    levels = tuple((side, side) for side in spec.shape["levels"])
    queries = sum(h * w for h, w in levels)
    case = AttnCase("", 2, 8, spec.shape["channels"], spec.shape["points"], levels, (), queries)
    return _problem(case, backends(spec.device))


def _problem(case: AttnCase, contenders: dict[str, str | None]) -> Problem:
    def make(seed: int) -> list[Tensor]:
        inputs = make_inputs(case, seed=seed)
        inputs.points.keeps_width = not case.query_hw  # type: ignore[attr-defined]
        return [tensor.requires_grad_() for tensor in inputs.tensors()]

    def run(backend: str | None, value: Tensor, points: Tensor, weights: Tensor) -> Tensor:
        if not case.query_hw:
            return ops.ms_deform_attn(value, case.level_hw, points, weights, backend=backend)
        return ops.ms_deform_attn_grid(
            value, case.level_hw, case.query_hw, points, weights, backend=backend
        )

    calls = {name: (__version__, partial(run, backend)) for name, backend in contenders.items()}
    corners = case.batch * case.num_queries * case.heads * len(case.level_hw) * case.points
    return Problem(make, partial(run, "reference"), calls, 8 * corners * case.channels)


SWEEPS: dict[str, Callable[[Spec], Problem]] = {
    "sweep_value_gradient": _value_gradient_problem,
    "sweep_generic": _generic_problem,
}
