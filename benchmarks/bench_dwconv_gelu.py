# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The depthwise convolution with GELU on the CPU, against torch's own operators, in one run.

What torch runs instead: split, transpose, convolve each grid, transpose, concatenate, GELU. Prints
a table and writes it as JSON. Every result is checked before it is timed.

    python benchmarks/bench_dwconv_gelu.py [--threads 1 2] [--dtype float32] [--out FILE]
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from cases import MODEL_HIDDEN, ConvCase, ConvInputs, extractor, make_conv_inputs
from listing import device_name, table, write
from timing import interleaved_ms
from tolerance import assert_close

SHAPES = [
    ConvCase(f"{m.upper()}@{image}", 1, MODEL_HIDDEN[m], extractor("", image, 1, 1).query_hw)
    for m in ("s", "b")
    for image in (512, 1024)
]


def composition(inputs: ConvInputs) -> Tensor:
    """Run torch's own operators, as a model without the op does."""
    sizes = inputs.case.grid_hw
    outs = []
    for tokens, hw in zip(inputs.tokens.split([h * w for h, w in sizes], 1), sizes, strict=True):
        image = tokens.transpose(1, 2).unflatten(2, hw).contiguous()
        groups = inputs.case.channels
        image = F.conv2d(image, inputs.weight, inputs.bias, padding=1, groups=groups)
        outs.append(image.flatten(2).transpose(1, 2))
    return F.gelu(torch.cat(outs, 1))


def step(run: Callable[[ConvInputs], Tensor], inputs: ConvInputs, cotangent: Tensor) -> Any:
    """Return a forward and backward pass of ``run`` over ``inputs``."""
    leaves = inputs.map(lambda tensor: tensor.detach().requires_grad_())

    def call() -> tuple[Tensor, ...]:
        out = run(leaves)
        return (out.detach(), *torch.autograd.grad(out, leaves.tensors(), cotangent))

    return call


def check(run: Any, inputs: ConvInputs, cotangent: Tensor) -> None:
    """Fail if any result of ``run`` is further from float64 than it may be."""
    exact = inputs.map(lambda tensor: tensor.double())
    truth = step(lambda i: i.run("reference"), exact, cotangent.double())()
    scale = step(lambda i: i.run("reference"), inputs, cotangent)()
    got = step(run, inputs, cotangent)()
    for index, parts in enumerate(zip(got, scale, truth, strict=True)):
        assert_close(*parts, f"{inputs.case.name}, result {index}")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    contestants = {"vitadapter_fast cpu": lambda i: i.run("cpu"), "torch": composition}
    rows = []
    for threads, case in [(threads, case) for threads in args.threads for case in SHAPES]:
        torch.set_num_threads(threads)
        inputs = make_conv_inputs(case, dtype=getattr(torch, args.dtype))
        cotangent = torch.randn(inputs.tokens.shape).to(inputs.tokens)
        check(contestants["vitadapter_fast cpu"], inputs, cotangent)
        forward: dict[str, Any] = {
            name: lambda run=run, inputs=inputs: run(inputs) for name, run in contestants.items()
        }
        # How long the memory alone takes.
        forward["copy of the tokens"] = inputs.tokens.clone
        both = {name: step(run, inputs, cotangent) for name, run in contestants.items()}
        for kind, runs in (("forward", forward), ("forward+backward", both)):
            for name, time_ms in interleaved_ms(runs, rounds=args.rounds).items():
                rows.append(
                    {"shape": case.name, "threads": threads, "pass": kind, "name": name}
                    | {"time_ms": round(time_ms, 3)}
                )
    device = f"{device_name()}, {args.dtype}"
    Console().print(table("Depthwise convolution with GELU", rows, device))
    if args.out:
        write(args.out, {"device": device, "torch": torch.__version__}, rows)


if __name__ == "__main__":
    main()
