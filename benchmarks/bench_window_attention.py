# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Attention within windows on the CPU: ours against compositions of torch's operators, in one run.

Prints a table and writes it as JSON. Every result is checked before it is timed.

    python benchmarks/bench_window_attention.py [--threads 1 2] [--dtype float32] [--out FILE]
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from cases import WindowCase, make_qkv
from listing import device_name, table, write
from timing import interleaved_ms
from tolerance import assert_close

from vitadapter_fast import __version__
from vitadapter_fast.ops import window_attention
from vitadapter_fast.ops.window_attention.reference import merge_windows, partition_windows

SHAPES = [
    WindowCase(f"{name}@{image}", 1, heads, 64, (image // 16, image // 16), 14)
    for name, heads in (("S", 6), ("B", 12))
    for image in (512, 1024)
]
Run = Callable[[WindowCase, Tensor], Tensor]


def ours(case: WindowCase, qkv: Tensor, backend: str = "cpu") -> Tensor:
    """Run the op on a backend."""
    return window_attention(qkv, case.hw, case.window_size, backend=backend)


def views(case: WindowCase, qkv: Tensor) -> Tensor:
    """Pad, cut into windows by views, attend by torch's fused kernel, merge."""
    windows = partition_windows(qkv.flatten(2), case.hw, case.window_size)
    heads = torch.unflatten(windows, 2, (3, case.heads, -1)).permute(2, 0, 3, 1, 4)
    out = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    return merge_windows(out, case.hw, case.window_size)


def unfold(case: WindowCase, qkv: Tensor) -> Tensor:
    """Compute the same as the original ViT-Adapter does."""
    (h, w), size, M, D = case.hw, case.window_size, case.heads, case.channels
    maps = qkv.flatten(2).transpose(1, 2).unflatten(2, (h, w))
    maps = F.pad(maps, (0, -w % size, 0, -h % size))
    columns = F.unfold(maps, (size, size), stride=(size, size))
    columns = columns.view(case.batch, 3, M, D, size * size, -1).permute(1, 0, 5, 2, 4, 3)
    query, key, value = columns  # [B, windows, M, size * size, D]
    attended = (query * D**-0.5 @ key.transpose(-2, -1)).softmax(-1) @ value
    columns = attended.permute(0, 2, 4, 3, 1).reshape(case.batch, M * D * size * size, -1)
    maps = F.fold(columns, maps.shape[2:], (size, size), stride=(size, size))
    return maps[:, :, :h, :w].flatten(2).transpose(1, 2)


def forward(run: Run, case: WindowCase, qkv: Tensor) -> Callable[[], Any]:
    """Return a call without gradients."""

    def call() -> Tensor:
        with torch.no_grad():
            return run(case, qkv)

    return call


def step(run: Run, case: WindowCase, qkv: Tensor, cotangent: Tensor) -> Callable[[], Any]:
    """Return a forward and backward pass."""
    leaf = qkv.detach().requires_grad_()

    def call() -> tuple[Tensor, ...]:
        out = run(case, leaf)
        return (out.detach(), *torch.autograd.grad(out, leaf, cotangent))

    return call


def check(runs: dict[str, Run], case: WindowCase, qkv: Tensor, cotangent: Tensor) -> None:
    """Fail if ours is further from float64 than it may be, or another computes something else."""
    reference = partial(ours, backend="reference")
    truth = step(reference, case, qkv.double(), cotangent.double())()
    scale = step(reference, case, qkv, cotangent)()
    for name, run in runs.items():
        got = step(run, case, qkv, cotangent)()
        for index, parts in enumerate(zip(got, scale, truth, strict=True)):
            if run is ours:
                assert_close(*parts, f"{case.name}, result {index}")
            else:
                close = torch.allclose(parts[0].double(), parts[2], rtol=0.05, atol=0.05)
                assert close, f"{case.name}, {name}, result {index}"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    contestants: dict[str, Run] = {
        "vitadapter_fast cpu": ours,
        "pad + views + SDPA": views,
        "unfold + softmax + fold": unfold,
    }
    rows = []
    for threads, case in [(threads, case) for threads in args.threads for case in SHAPES]:
        torch.set_num_threads(threads)
        qkv = make_qkv(case, dtype=getattr(torch, args.dtype), spread=1.0)
        cotangent = torch.randn(qkv.shape[0], qkv.shape[1], case.heads * case.channels).to(qkv)
        check(contestants, case, qkv, cotangent)
        passes = {
            "forward": {k: forward(run, case, qkv) for k, run in contestants.items()},
            "forward+backward": {
                k: step(run, case, qkv, cotangent) for k, run in contestants.items()
            },
        }
        for kind, runs in passes.items():
            for name, time_ms in interleaved_ms(runs, rounds=args.rounds).items():
                rows.append(
                    {"shape": case.name, "threads": threads, "pass": kind, "name": name}
                    | {"time_ms": round(time_ms, 3)}
                )
    device = f"{device_name()}, {args.dtype}"
    Console(width=120).print(table("Attention within windows of 14 x 14", rows, device))
    if args.out:
        facts = {"device": device, "torch": torch.__version__, "vitadapter_fast": __version__}
        write(args.out, facts, rows)


if __name__ == "__main__":
    main()
