# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""What the library's choices depend on: on a new device, read the notes at the end of the run."""

from collections.abc import Callable
from typing import Any

import pytest
from results import Results
from sweeps import (
    ATOMICS,
    RECORDS,
    crossover,
    generic_shapes,
    points_per_pixel,
    value_gradient_shapes,
)
from worker import PASSES
from workloads import Row, rows

_SIDES = {"smoke": 8, "gpu": 64, "gpu_full": 64}
_DTYPES = {"smoke": ("float32",), "gpu": ("bfloat16",), "gpu_full": ("bfloat16", "float32")}


def cases(scale: str, device: str) -> list[Row]:
    if scale not in _SIDES:  # the CPU has one way for each
        return []
    side, dtypes = _SIDES[scale], _DTYPES[scale]
    found = rows("sweep_value_gradient", device, value_gradient_shapes(side), dtypes)
    found = [row for row in found if row.passes == PASSES[1]]
    return found + rows("sweep_generic", device, generic_shapes(2 * side), dtypes)


def test_sweep(row: Row, timed: Any) -> None:
    timed(row)


def test_crossover(results: Results, note: Callable[[str], None]) -> None:
    """Note the number to put into the library, from what was timed above."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for entry in results.rows:
        facts = entry["extra_info"]
        if facts["kind"] == "sweep_value_gradient":
            device_ms = facts["device_ms"]
            time_ms = 1e3 * entry["stats"]["median"] if device_ms is None else device_ms
            clock = "wall" if device_ms is None else "graph"
            times = found.setdefault((facts["dtype"], clock), {})
            times[f"{facts['shape']} {facts['contender']}"] = time_ms
    if not found:
        pytest.skip("no row of the sweep was timed")
    for (dtype, clock), times in found.items():
        shapes = dict.fromkeys(name.split(" vitadapter")[0] for name in times)
        pairs = [(times.get(f"{s} {ATOMICS}"), times.get(f"{s} {RECORDS}")) for s in shapes]
        both = [
            (points_per_pixel(shape), one, two)
            for shape, (one, two) in zip(shapes, pairs, strict=True)
            if one is not None and two is not None
        ]
        if both:
            device = results.machine["device"]
            text = ", ".join(f"{p:g}: {one:.3f} {two:.3f}" for p, one, two in both)
            note(f"{device}, {dtype}: POINTS_PER_PIXEL = {crossover(both):.3g} ({clock} clock)")
            note(f"  points per pixel: ms by atomics, by records: {text}")
