# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Rows in; how long they will take on one H100 with 16 cores out. Guesses, not measurements.

python benchmarks/estimate.py [gpu|gpu_full]
"""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(_HERE), str(_HERE.parent / "tests" / "helpers")]

MINUTES = 25.0  # what scale gpu may take
# A process: a context, libraries' first use, building and the check.
_PROCESS_S = {"backbone": 8.0}
_OPERATOR_S = 7.0
_LARGE_S = {"l": 3.0, "g": 6.0}  # more, for parameters and the check
_COMPILE_S = 60.0  # a pass of a backbone; the training step counts twice
_OTHER_S = 60.0  # limits of the device, bench_overhead, collecting, writing
# TFLOP of a forward pass per megapixel (1024 x 1024, from shapes), and TFLOP/s that it runs at.
_TFLOP = {"s": 0.45, "b": 1.27, "l": 3.3, "g": 10.8}
_TFLOP_PER_S = {"bfloat16": 120.0, "float32": 30.0, "int8": 30.0}
_WALL_S, _LEAST_S = 0.5, 0.01  # of rounds, and again of replays; a call that is bound by the host
_LEAST_CALLS, _OTHER_CALLS = 6, 6  # rounds and replays; memory, the first call, warming up, capture


@dataclass(frozen=True)
class Line:
    """One kind of process.

    Attributes:
        what: Kind and sort of contender.
        processes: How many.
        rows: How many results they give.
        minutes: All of them.
    """

    what: str
    processes: int
    rows: int
    minutes: float


def estimate(rows: Iterable[Any]) -> list[Line]:
    """Return a line for each kind of process."""
    specs: dict[str, list[Any]] = {}
    for row in rows:
        is_compiled = row.spec.contender.endswith("compiled")
        specs.setdefault(row.spec.kind + ", compiled" * is_compiled, []).append(row)
    lines = []
    for what, found in specs.items():
        processes = {repr(row.spec): row.spec for row in found}
        seconds = sum(map(_process_s, processes.values())) + sum(map(_row_s, found))
        lines.append(Line(what, len(processes), len(found), seconds / 60))
    return lines


def _process_s(spec: Any) -> float:
    return _PROCESS_S.get(spec.kind, _OPERATOR_S) + _LARGE_S.get(spec.shape.get("model", ""), 0.0)


def _row_s(row: Any) -> float:
    spec = row.spec
    if spec.kind != "backbone":
        return 2 * _WALL_S
    (h, w), factor = spec.shape["image_hw"], 1 if row.passes == "forward" else 3
    work = factor * spec.shape["batch"] * h * w / 2**20 * _TFLOP[spec.shape["model"]]
    call = max(work / _TFLOP_PER_S[spec.dtype], _LEAST_S * factor)
    timed = max(2 * _WALL_S, _LEAST_CALLS * call)
    compiling = _COMPILE_S * (1 if factor == 1 else 2) if "compiled" in spec.contender else 0.0
    return timed + _OTHER_CALLS * call + compiling


def table(rows: Sequence[Any]) -> list[str]:
    """Return lines of text: processes, rows and minutes of each kind, and in all."""
    lines = estimate(rows)
    lines.append(Line("limits, overhead, collecting", 0, 0, _OTHER_S / 60))
    total = Line(
        "in all (a guess)",
        *(sum(getattr(line, name) for line in lines) for name in ("processes", "rows", "minutes")),
    )
    heads = f"{'':28} {'processes':>9} {'rows':>5} {'minutes':>7}"
    shown = (f"{x.what:28} {x.processes:9} {x.rows:5} {x.minutes:7.1f}" for x in (*lines, total))
    return [heads, *shown]


def rows_of(scale: str) -> list[Any]:
    """Return every row of a scale; no GPU is needed to name them."""
    import bench_backbone
    import bench_ms_deform_attn
    import bench_operators
    import bench_sweeps

    modules: tuple[Any, ...] = (bench_backbone, bench_ms_deform_attn, bench_operators, bench_sweeps)
    device = "cuda" if scale.startswith("gpu") else "cpu"
    return [row for module in modules for row in module.cases(scale, device)]


def main() -> None:
    """Print the table of a scale."""
    scale = sys.argv[1] if len(sys.argv) > 1 else "gpu"
    sys.stdout.writelines(f"{line}\n" for line in table(rows_of(scale)))


if __name__ == "__main__":
    main()
