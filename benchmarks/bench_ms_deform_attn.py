# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Multi-scale deformable attention on the CPU: ours against every peer, in one run.

Prints a table and writes it as JSON. Every result is checked before it is timed.

    python benchmarks/bench_ms_deform_attn.py [--threads 1 2] [--out benchmarks/results/cpu.json]
"""

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from cases import AttnInputs, extractor, injector, make_inputs, query_centers
from listing import device_name, table, write
from peers import Peer, attention_peers
from timing import interleaved_ms
from tolerance import assert_close

from vitadapter_fast import __version__
from vitadapter_fast.ops import ms_deform_attn

SHAPES = [
    extractor("S@512 extractor", 512, 6, 64),
    injector("S@512 injector", 512, 6, 64),
    extractor("B@1024 extractor", 1024, 12, 32),
    injector("B@1024 injector", 1024, 12, 32),
]
# Pixels between query and point: a trained model's are within a few.
SPREAD = 2.0


def ours(value: Tensor, level_hw: Any, locations: Tensor, weights: Tensor) -> Tensor:
    """Run the classic entry point on the cpu backend."""
    return ms_deform_attn(value, level_hw, locations, weights, backend="cpu")


def classic_inputs(grid: AttnInputs) -> AttnInputs:
    """Return locations and weights that equal the offsets and logits of ``grid``."""
    case = grid.case
    sizes = torch.tensor([[w, h] for h, w in case.level_hw])[:, None]
    centers = query_centers(case)[:, None, None, None].to(grid.points.dtype)
    weights = grid.weights.flatten(-2).softmax(-1).view_as(grid.weights)
    return AttnInputs(case.classic(), grid.value, centers + grid.points / sizes, weights)


def step(run: Any, inputs: AttnInputs, cotangent: Tensor) -> Any:
    """Return a forward and backward pass of ``run`` over ``inputs``."""
    leaves = inputs.requires_grad()

    def call() -> Any:
        out = run(leaves.value, inputs.case.level_hw, leaves.points, leaves.weights)
        return (out.detach(), *torch.autograd.grad(out, leaves.tensors(), cotangent))

    return call


def check(contestants: list[Peer], inputs: AttnInputs, cotangent: Tensor) -> None:
    """Fail if any contestant's output or gradient is further from float64 than it may be."""

    def reference(*args: Any) -> Tensor:
        return ms_deform_attn(*args, backend="reference")

    truth = step(reference, inputs.to(torch.float64), cotangent.double())()
    scale = step(reference, inputs, cotangent)()
    for peer in contestants:
        parts = zip(step(peer.run, inputs, cotangent)(), scale, truth, strict=True)
        for index, (got, wanted, exact) in enumerate(parts):
            assert_close(got, wanted, exact, f"{peer.name}, {inputs.case.name}, result {index}")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    console = Console()
    contestants = [Peer("vitadapter_fast cpu", __version__, ours), *attention_peers()]
    rows = []
    todo = [(threads, case) for threads in args.threads for case in SHAPES]
    for threads, case in track(todo, "measuring", console=console, transient=True):
        torch.set_num_threads(threads)
        grid = make_inputs(case, spread=SPREAD, dtype=torch.float32)
        inputs = classic_inputs(grid)
        cotangent = torch.randn(1, case.num_queries, case.heads * case.channels)
        check(contestants, inputs, cotangent)
        tensors = (inputs.value, case.level_hw, inputs.points, inputs.weights)
        forward = {peer.name: partial(peer.run, *tensors) for peer in contestants}
        forward["vitadapter_fast cpu, grid"] = partial(grid.run, "cpu")
        both = {p.name: step(p.run, inputs, cotangent) for p in contestants}
        for kind, runs in (("forward", forward), ("forward+backward", both)):
            for name, time_ms in interleaved_ms(runs, rounds=args.rounds).items():
                rows.append(
                    {"shape": case.name, "threads": threads, "pass": kind, "name": name}
                    | {"time_ms": round(time_ms, 3)}
                )
    device = f"{device_name()}, float32"
    console.print(table("Multi-scale deformable attention", rows, device))
    if args.out:
        facts = {"device": device, "torch": torch.__version__, "spread_px": SPREAD}
        facts |= {"versions": {peer.name: peer.version for peer in contestants}}
        write(args.out, facts, rows)


if __name__ == "__main__":
    main()
