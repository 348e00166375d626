# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Patch embedding with a resized position table on the CPU: ours against plain PyTorch, in one run.

Prints a table and writes it as JSON. Every result is checked before it is timed.

    python benchmarks/bench_patch_embed.py [--threads 2] [--out benchmarks/results/cpu.json]
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from listing import device_name, table, write
from timing import interleaved_ms
from tolerance import assert_close

from vitadapter_fast import __version__
from vitadapter_fast.ops import patch_embed

CHANNELS = {"S": 384, "L": 1024}
POS_HW = (37, 37)
Tensors = list[Tensor]


def ours(image: Tensor, weight: Tensor, bias: Tensor, pos_embed: Tensor) -> Tensor:
    """Run the op on the cpu backend."""
    return patch_embed(image, weight, bias, pos_embed, POS_HW, backend="cpu")


def composed(image: Tensor, weight: Tensor, bias: Tensor, pos_embed: Tensor) -> Tensor:
    """Compute the same as the original ViT-Adapter does."""
    maps = F.conv2d(image, weight, bias, stride=weight.shape[2:])
    table = pos_embed.view(1, *POS_HW, -1).permute(0, 3, 1, 2)
    positions = F.interpolate(table, size=maps.shape[2:], mode="bicubic")
    return maps.flatten(2).transpose(1, 2) + positions.flatten(2).transpose(1, 2)


CONTESTANTS = {"vitadapter_fast cpu": ours, "conv2d + interpolate": composed}


def make_inputs(size: int, channels: int) -> Tensors:
    """Return image, weight, bias and position table; the image needs no gradient."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    weight = normal(channels, 3, 16, 16) / 28  # tokens of variance 1
    leaves = [weight, normal(channels), normal(37 * 37, channels)]
    return [normal(1, 3, size, size), *(leaf.requires_grad_() for leaf in leaves)]


def forward(run: Callable[..., Tensor], tensors: Tensors) -> Callable[[], Any]:
    """Return a call without gradients."""

    def call() -> Tensor:
        with torch.no_grad():
            return run(*tensors)

    return call


def step(run: Callable[..., Tensor], tensors: Tensors, cotangent: Tensor) -> Callable[[], Any]:
    """Return a forward and backward pass: gradients of weight, bias and table."""

    def call() -> Any:
        out = run(*tensors)
        return (out.detach(), *torch.autograd.grad(out, tensors[1:], cotangent))

    return call


def check(tensors: Tensors, cotangent: Tensor) -> None:
    """Fail if an output or gradient is further from float64 than it may be."""
    wide = [tensor.detach().double().requires_grad_(tensor.requires_grad) for tensor in tensors]
    truth = step(composed, wide, cotangent.double())()
    scale = step(composed, tensors, cotangent)()
    parts = zip(step(ours, tensors, cotangent)(), scale, truth, strict=True)
    for index, (got, near, exact) in enumerate(parts):
        assert_close(got, near, exact, f"result {index}")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    console = Console()
    rows = []
    shapes = [(name, size) for name in CHANNELS for size in (512, 1024)]
    todo = [(threads, *shape) for threads in args.threads for shape in shapes]
    for threads, name, size in track(todo, "measuring", console=console, transient=True):
        torch.set_num_threads(threads)
        tensors = make_inputs(size, CHANNELS[name])
        cotangent = torch.randn(1, (size // 16) ** 2, CHANNELS[name])
        check(tensors, cotangent)
        passes: dict[str, dict[str, Callable[[], Any]]] = {
            "forward": {k: forward(run, tensors) for k, run in CONTESTANTS.items()},
            "forward+backward": {
                k: step(run, tensors, cotangent) for k, run in CONTESTANTS.items()
            },
        }
        for kind, runs in passes.items():
            for contestant, time_ms in interleaved_ms(runs, rounds=args.rounds).items():
                rows.append(
                    {"shape": f"{name}@{size}", "threads": threads, "pass": kind}
                    | {"name": contestant, "time_ms": round(time_ms, 3)}
                )
    device = f"{device_name()}, float32"
    console.print(table("Patch embedding", rows, device))
    if args.out:
        facts = {"device": device, "torch": torch.__version__, "vitadapter_fast": __version__}
        write(args.out, facts, rows)


if __name__ == "__main__":
    main()
