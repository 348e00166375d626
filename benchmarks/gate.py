# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Fail if a CPU kernel lost more than 15 % against torch's own operators, timed beside it.

The ratio of two minima, on one thread, call by call in turn: a machine that is slow or busy slows
both. Ratios depend on the processor a little, so gate.json names the one they were measured on; on
another, a kernel may take twice its ratio there before this fails.

    python benchmarks/gate.py           compare with gate.json
    python benchmarks/gate.py --write   measure anew and write it
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).resolve().parents[1] / "tests")]

from limits import device_name  # noqa: E402
from worker import PASSES, Spec, Workload  # noqa: E402
from workloads import OURS, build  # noqa: E402

FILE = Path(__file__).parent / "gate.json"
LOSS = 1.15  # on the processor of the file
OTHER_PROCESSOR = 2.0
_TRIES, _SECONDS = 6, 1.2
SHAPE = {"model": "s", "image": 256}
RIVALS = {
    "ms_deform_attn": ({**SHAPE, "side": "extractor", "entry": "op"}, "grid_sample"),
    "ms_deform_attn_grid": ({**SHAPE, "side": "injector", "entry": "block"}, "grid_sample"),
    "patch_embed": (SHAPE, "conv2d + interpolate"),
    "window_attention": (SHAPE, "pad + views + SDPA"),
    "dwconv_gelu": (SHAPE, "split + conv2d + cat"),
    "batch_norm": (SHAPE, "torch"),
}


def pair(name: str) -> tuple[Workload, Workload]:
    """Return ours and its rival, checked."""
    shape, rival = RIVALS[name]
    kind = name.removesuffix("_grid")
    ours, theirs = (build(Spec(kind, each, dict(shape))) for each in (OURS, rival))
    ours.check()
    return ours, theirs


def ratio(pair: tuple[Workload, Workload], passes: str, best: list[float]) -> float:
    """Return our shortest time over theirs; ``best`` keeps both from one try to the next."""
    end = time.perf_counter() + _SECONDS
    index = 0
    while time.perf_counter() < end or index < 5:
        for side, workload in enumerate(pair):
            start = time.perf_counter()
            workload.run(passes, index)
            best[side] = min(best[side], time.perf_counter() - start)
        index += 1
    return best[0] / best[1]


def measure(wanted: dict[str, float], allowed: float) -> dict[str, float]:
    """Return ratios by operator and pass; those beyond what is allowed are tried again."""
    found = {}
    for name in RIVALS:
        both = pair(name)
        for passes in PASSES:
            key, best = f"{name} {passes}", [math.inf, math.inf]
            for _ in range(_TRIES):
                found[key] = ratio(both, passes, best)
                if found[key] <= allowed * wanted.get(key, 0.0):
                    break
    return found


def verdicts(
    found: dict[str, float], wanted: dict[str, float], allowed: float
) -> list[tuple[str, bool]]:
    """Return a line for each ratio, and whether it may be."""
    lines = []
    for key, value in found.items():
        was = wanted.get(key)
        if was is None:
            lines.append((f"{key}: {value:.3f}, and none in {FILE.name}: run --write", False))
            continue
        lines.append(
            (f"{key}: {value:.3f}, was {was:.3f} ({value / was - 1:+.0%})", value <= allowed * was)
        )
    return lines


def main() -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    processor = device_name("cpu")
    if args.write:
        ratios = {key: round(value, 4) for key, value in measure({}, 0.0).items()}
        FILE.write_text(json.dumps({"processor": processor, "ratios": ratios}, indent=1) + "\n")
        return 0
    kept: dict[str, Any] = json.loads(FILE.read_text())
    allowed = LOSS if kept["processor"] == processor else OTHER_PROCESSOR
    lines = verdicts(measure(kept["ratios"], allowed), kept["ratios"], allowed)
    sys.stdout.write(f"{processor}: may take {allowed} times the ratio of {kept['processor']}\n")
    sys.stdout.writelines(f"{'ok  ' if fine else 'SLOW'} {line}\n" for line, fine in lines)
    return int(not all(fine for _, fine in lines))


if __name__ == "__main__":
    sys.exit(main())
