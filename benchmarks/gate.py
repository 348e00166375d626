# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Fail if a CPU kernel lost more than 15 % against torch's own operators, timed beside it.

The ratio of two minima, on one thread, call by call in turn: a machine that is slow or busy slows
both. Where a process has its buffers makes up to 15 %, so gate.json holds medians of several
processes, and what seems slow is tried in new ones. Ratios depend on the processor, so the file has
them for several; on another, a kernel may take twice the largest of them before this fails. Rows in
bfloat16 are compared where the file has them for this processor: each has its own way with 16 bits.

    python benchmarks/gate.py           compare with gate.json
    python benchmarks/gate.py --write   measure anew and write it, for this processor
"""

import argparse
import json
import math
import multiprocessing
import os
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

_HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(_HERE), str(_HERE.parent / "tests" / "helpers")]

from limits import device_name  # noqa: E402
from problems import OURS  # noqa: E402
from worker import PASSES, Spec  # noqa: E402
from workloads import build  # noqa: E402

from vitadapter_fast.ops.int8_linear import cpu as int8_kernel  # noqa: E402

FILE = Path(__file__).parent / "gate.json"
LOSS = 1.15  # on a processor of the file
OTHER_PROCESSOR = 2.0
_TRIES, _SECONDS = 10, 0.8
SHAPE = {"model": "s", "image": 256}
RIVALS = {
    "ms_deform_attn": ({**SHAPE, "side": "extractor", "entry": "op"}, "grid_sample"),
    "ms_deform_attn_grid": ({**SHAPE, "side": "injector", "entry": "block"}, "grid_sample"),
    "patch_embed": (SHAPE, "conv2d + interpolate"),
    "window_attention": (SHAPE, "pad + views + SDPA"),
    "rope": (SHAPE, "split + cat"),
    "dwconv_gelu": (SHAPE, "split + conv2d + cat"),
    "batch_norm": (SHAPE, "torch"),
    "feed_forward": (SHAPE, "torch"),
    "stem_convolution": (SHAPE, "torch"),
}
if int8_kernel.processor_reason() is None:
    RIVALS["int8_linear"] = (SHAPE, "torch._int_mm, composed")


# Each kernel in both; float32 has no word of its own in the file.
ROWS = [*RIVALS, *(f"{name} bfloat16" for name in RIVALS)]


def ratios(row: str) -> dict[str, float]:
    """Return our shortest time over the rival's, by pass; ours is checked first."""
    torch.set_num_threads(1)
    name, _, dtype = row.partition(" ")
    shape, rival = RIVALS[name]
    kind, dtype = name.removesuffix("_grid"), dtype or "float32"
    pair = [build(Spec(kind, each, shape, dtype)) for each in (OURS, rival)]
    pair[0].check()
    found = {}
    for passes in PASSES:
        best = [math.inf, math.inf]
        end, index = time.perf_counter() + _SECONDS, 0
        while time.perf_counter() < end or index < 5:
            for side, workload in enumerate(pair):
                start = time.perf_counter()
                workload.run(passes, index)
                best[side] = min(best[side], time.perf_counter() - start)
            index += 1
        found[f"{row} {passes}"] = best[0] / best[1]
    return found


def measure(processes: ProcessPoolExecutor) -> dict[str, float]:
    """Return the medians of the ratios over processes."""
    tried = [processes.submit(ratios, row) for row in ROWS for _ in range(_TRIES)]
    found: dict[str, list[float]] = {}
    for each in tried:
        for key, value in each.result().items():
            found.setdefault(key, []).append(value)
    return {key: statistics.median(values) for key, values in found.items()}


def compare(processes: ProcessPoolExecutor, allowed: dict[str, float]) -> dict[str, float]:
    """Return the smallest ratios, of as many processes as it takes to be within ``allowed``."""
    found: dict[str, float] = {}
    for row in ROWS:
        if f"{row} {PASSES[0]}" not in allowed:
            continue
        for _ in range(_TRIES):
            tried = processes.submit(ratios, row).result()
            found |= {key: min(value, found.get(key, math.inf)) for key, value in tried.items()}
            if all(found[key] <= allowed.get(key, 0.0) for key in tried):
                break
    return found


def references(kept: dict[str, dict[str, float]], processor: str) -> tuple[dict[str, float], float]:
    """Return the ratios to compare with, and how many times of them are allowed."""
    largest: dict[str, float] = {}
    for ratios_there in kept.values():
        for key, value in ratios_there.items():
            if "bfloat16" not in key:
                largest[key] = max(value, largest.get(key, 0.0))
    if processor not in kept:
        return largest, OTHER_PROCESSOR
    # What was not measured on this one yet may take as long as on one that is not known.
    others = {key: value * OTHER_PROCESSOR / LOSS for key, value in largest.items()}
    return others | kept[processor], LOSS


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
    processor = f"{device_name('cpu')}, {torch.backends.cpu.get_cpu_capability()}"
    # For the processes, which import by name what this one does.
    os.environ["PYTHONPATH"] = os.pathsep.join([*sys.path[:2], os.environ.get("PYTHONPATH", "")])
    # glibc keeps what is freed. Else it gives large buffers back or not, by the calls before, and
    # fresh pages take half of a rival's time or none.
    os.environ |= {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "vitadapter_fast", "workloads"])
    with ProcessPoolExecutor(1, context, max_tasks_per_child=1) as processes:
        kept: dict[str, Any] = json.loads(FILE.read_text())
        if args.write:
            kept[processor] = {key: round(value, 4) for key, value in measure(processes).items()}
            FILE.write_text(json.dumps(kept, indent=1) + "\n")
            return 0
        wanted, loss = references(kept, processor)
        found = compare(processes, {key: loss * ratio for key, ratio in wanted.items()})
    whose = "its own ratio" if processor in kept else "the largest ratio of others"
    sys.stdout.write(f"{processor}: may take {loss} times {whose}\n")
    lines = verdicts(found, wanted, loss)
    sys.stdout.writelines(f"{'ok  ' if fine else 'SLOW'} {line}\n" for line, fine in lines)
    return int(not all(fine for _, fine in lines))


if __name__ == "__main__":
    sys.exit(main())
