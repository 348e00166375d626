# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The whole backbone on the CPU: ours, its arithmetic alone, and the original, in one run.

Its arithmetic: the matrix products, convolutions and attention of its own forward pass, repeated
without anything between them. The original: see original.py. Prints a table and writes it as JSON;
outputs are checked against the original's before anything is timed.

    python benchmarks/bench_model.py [--original CHECKOUT] [--presets s b] [--sizes 512 800x1344]
"""

import argparse
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import original
import torch
import torch.nn.functional as F
from listing import device_name, table, write
from rich.console import Console
from rich.progress import track
from timing import interleaved_ms
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import vitadapter_fast
from vitadapter_fast import ViTAdapter, __version__

Run = Callable[[], object]
OURS, ORIGINAL, ARITHMETIC = "vitadapter_fast", "original", "its arithmetic alone"
_PRODUCTS = ("mm", "addmm", "bmm", "linear", "_linear_pointwise", "convolution")
_ATTENTION = ("_scaled_dot_product_flash_attention_for_cpu", "window_attention")


class Arithmetic(TorchDispatchMode):
    """Record the products, convolutions and attention of what runs inside, to run them alone."""

    def __init__(self) -> None:
        """Start with nothing recorded."""
        super().__init__()
        self.calls: list[Run] = []

    def __torch_dispatch__(
        self, op: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run ``op``; keep it with its inputs if it is arithmetic."""
        name = op._schema.name.split("::")[1]
        if name in (*_PRODUCTS, *_ATTENTION):
            self.calls.append(lambda: op(*args, **(kwargs or {})))
        elif name == "patch_embed":
            image, weight, bias, *_ = args
            rows = image.unfold(2, 16, 16).unfold(3, 16, 16).permute(0, 2, 3, 1, 4, 5)
            rows, matrix = rows.flatten(0, 2).flatten(1), weight.flatten(1)
            self.calls.append(lambda: F.linear(rows, matrix, bias))
        return op(*args, **(kwargs or {}))

    def run(self) -> None:
        """Repeat what was recorded."""
        for call in self.calls:
            call()


def forward(model: nn.Module, image: Tensor) -> Run:
    """Return a call without gradients."""

    def call() -> list[Tensor]:
        with torch.no_grad():
            maps: list[Tensor] = model(image)
            return maps

    return call


def step(model: nn.Module, image: Tensor, cotangents: list[Tensor]) -> Run:
    """Return a forward and backward pass."""

    def call() -> None:
        torch.autograd.backward(model(image), cotangents)
        model.zero_grad(set_to_none=True)

    return call


def build(preset: str, checkout: Path | None) -> tuple[ViTAdapter, nn.Module | None]:
    """Return ours and the original with the same weights; gammas are drawn, or injectors idle."""
    torch.manual_seed(0)
    ours: ViTAdapter = getattr(vitadapter_fast, f"vit_adapter_{preset}")()
    for interaction in ours.interactions:
        nn.init.normal_(interaction.injector.gamma)
    if checkout is None:
        return ours, None
    theirs = original.load(checkout, preset)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours, theirs


def measure(
    models: dict[str, nn.Module], image: Tensor, rounds: int, trains: bool
) -> dict[str, dict[str, float]]:
    """Return milliseconds by pass and contestant."""
    for model in models.values():
        model.eval()
    maps = [forward(model, image)() for model in models.values()]
    for other in maps[1:]:
        for got, wanted in zip(maps[0], other, strict=True):  # type: ignore[call-overload]
            torch.testing.assert_close(got, wanted, rtol=0, atol=1e-4 * wanted.abs().max().item())
    recorder = Arithmetic()
    with torch.no_grad(), recorder:
        models[OURS](image)

    def arithmetic() -> None:
        with torch.no_grad():
            recorder.run()

    runs: dict[str, Run] = {name: forward(model, image) for name, model in models.items()}
    results = {"forward": interleaved_ms(runs | {ARITHMETIC: arithmetic}, rounds=rounds)}
    if trains:
        for model in models.values():
            model.train()
        cotangents = [torch.randn_like(part) for part in maps[0]]  # type: ignore[attr-defined]
        steps: dict[str, Run] = {
            name: step(model, image, cotangents) for name, model in models.items()
        }
        results["forward+backward"] = interleaved_ms(steps, rounds=rounds)
    return results


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--original", type=Path, help="checkout of github.com/czczup/ViT-Adapter")
    parser.add_argument("--presets", nargs="+", default=["s", "b"], choices=["s", "b", "l", "g"])
    parser.add_argument("--sizes", nargs="+", default=["512"], help="512 or 800x1344")
    parser.add_argument("--batches", type=int, nargs="+", default=[1])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--forward-only", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore", message="torch.meshgrid")
    console = Console()
    rows: list[dict[str, Any]] = []
    for preset in args.presets:
        ours, theirs = build(preset, args.original)
        models: dict[str, nn.Module] = {OURS: ours}
        if theirs is not None:
            models[ORIGINAL] = theirs
        todo = [(size, batch) for size in args.sizes for batch in args.batches]
        for size, batch in track(todo, f"measuring {preset}", console=console, transient=True):
            hw = [int(side) for side in size.split("x")]
            image = torch.randn(batch, 3, hw[0], hw[-1])
            found = measure(models, image, args.rounds, not args.forward_only)
            for kind, times in found.items():
                for name, time_ms in times.items():
                    shape = f"{preset.upper()}@{size}" + (f" x {batch}" if batch > 1 else "")
                    rows.append(
                        {"shape": shape, "threads": args.threads, "pass": kind}
                        | {"name": name, "time_ms": round(time_ms, 1)}
                    )
    device = f"{device_name()}, float32"
    console.print(table("ViT-Adapter", rows, device))
    if args.out:
        facts = {"device": device, "torch": torch.__version__, "vitadapter_fast": __version__}
        write(args.out, facts, rows)


if __name__ == "__main__":
    sys.exit(main())
