# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Patch embedding on a CUDA device: ours against plain PyTorch and its bare GEMM, in one run.

Prints a table and writes JSON. Every result is checked before it is timed.

    python benchmarks/bench_patch_embed_gpu.py [--batch 1 8] [--out FILE]
"""

import argparse
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from bench_ms_deform_attn_gpu import device_us
from bench_patch_embed import CHANNELS, POS_HW, Tensors, composed, make_inputs
from listing import table, write
from rich.console import Console
from rich.progress import track
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from tolerance import assert_close

from vitadapter_fast import __version__
from vitadapter_fast.ops import patch_embed

# Images in turn, so that the cache does not hold the next.
COPIES = 8


def contestants() -> dict[str, Callable[..., Tensor]]:
    """Return what is compared, ours first."""
    ours = {
        f"vitadapter_fast {name}": partial(patch_embed, pos_hw=POS_HW, backend=name)
        for name in ("cuda", "triton")
    }
    return {**ours, "conv2d + interpolate": composed}


def check(runs: dict[str, Callable[..., Tensor]], tensors: Tensors) -> None:
    """Fail if an output is further from float64 than it may be."""
    truth = composed(*[tensor.double() for tensor in tensors])
    for name, run in runs.items():
        assert_close(run(*tensors), composed(*tensors), truth, name)


def measure(size: int, channels: int, batch: int, dtype: torch.dtype) -> dict[str, float]:
    """Return the device time of each contestant and of the bare GEMM, in milliseconds."""
    image, *parameters = (t.detach().to("cuda", dtype) for t in make_inputs(size, channels))
    images = [torch.randn_like(image.expand(batch, -1, -1, -1)) for _ in range(COPIES)]
    runs = contestants()
    check(runs, [images[0], *parameters])
    rows = [torch.randn(batch * (size // 16) ** 2, 768, device="cuda", dtype=dtype) for _ in images]
    kernel = parameters[0].flatten(1).t()
    calls: dict[str, list[Callable[[], Any]]] = {
        name: [partial(run, each, *parameters) for each in images] for name, run in runs.items()
    }
    calls["bare GEMM"] = [partial(torch.mm, each, kernel) for each in rows]
    return {name: median(device_us(each)) / 1e3 for name, each in calls.items()}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("needs a CUDA device")
    torch.backends.cudnn.allow_tf32 = False  # as torch.mm has it
    console = Console()
    rows = []
    todo = [
        (name, size, batch, dtype)
        for dtype in (torch.bfloat16, torch.float32)
        for name in CHANNELS
        for size in (512, 1024)
        for batch in args.batch
    ]
    for name, size, batch, dtype in track(todo, "measuring", console=console, transient=True):
        with torch.no_grad():
            times = measure(size, CHANNELS[name], batch, dtype)
        shape = f"{name}@{size} x{batch} {str(dtype).removeprefix('torch.')}"
        rows += [
            {"shape": shape, "threads": "", "pass": "forward", "name": contestant}
            | {"time_ms": round(time_ms, 5)}
            for contestant, time_ms in times.items()
        ]
    device = torch.cuda.get_device_name()
    console.print(table("Patch embedding", rows, device))
    name = re.sub(r"\W+", "_", device.lower()).strip("_")
    out = args.out or Path(__file__).parent / "results" / f"{name}_patch_embed.json"
    write(out, {"device": device, "torch": torch.__version__, "vitadapter_fast": __version__}, rows)


if __name__ == "__main__":
    main()
