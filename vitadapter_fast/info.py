# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""What runs here and why not: the op x backend table, the facts of the build, and a self-test."""

import argparse
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from . import ops
from .errors import BackendUnavailable
from .ops import _native
from .ops._backends import NAMES
from .version import __version__

Run = Callable[..., Tensor]


@dataclass(frozen=True)
class Probe:
    """A small real call of one op: tensors, and how to run it on a backend."""

    tensors: tuple[Tensor, ...]
    run: Run

    def to(self, device: str, dtype: torch.dtype) -> "Probe":
        """Return the probe on a device, in a dtype."""
        moved = tuple(t.to(device, dtype).detach().requires_grad_() for t in self.tensors)
        return Probe(moved, self.run)


def _random(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


# Extractor of a 64-pixel image with S's heads: three query grids on one map, and the reverse.
_GRIDS = [(8, 8), (4, 4), (2, 2)]


def _classic(backend: str, value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    # Locations are never 16 bits wide: see ms_deform_attn.
    wide = torch.promote_types(value.dtype, torch.float32)
    return ops.ms_deform_attn(value, _GRIDS, locations.to(wide), weights, backend=backend)


def _grid(backend: str, value: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
    return ops.ms_deform_attn_grid(value, _GRIDS[1:2], _GRIDS, offsets, logits, backend=backend)


def _patch(backend: str, image: Tensor, weight: Tensor, bias: Tensor, table: Tensor) -> Tensor:
    return ops.patch_embed(image, weight, bias, table, (5, 5), backend=backend)


def _conv(backend: str, tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return ops.dwconv_gelu(tokens, _GRIDS, weight, bias, backend=backend)


def _windows(backend: str, qkv: Tensor) -> Tensor:
    return ops.window_attention(qkv, (8, 8), 5, backend=backend)


def probes() -> dict[str, Probe]:
    """Return one probe for every op, by the op's name."""
    weights = _random(1, 16, 6, 12).softmax(-1).view(1, 16, 6, 3, 4)
    locations = _random(1, 16, 6, 3, 4, 2) / 4 + 0.5
    patch = (_random(1, 3, 64, 96), _random(32, 3, 16, 16), _random(32), _random(25, 32))
    conv = (_random(1, 84, 96), _random(96, 1, 3, 3), _random(96))
    return {
        "dwconv_gelu": Probe(conv, _conv),
        "ms_deform_attn": Probe((_random(1, 84, 6, 64), locations, weights), _classic),
        "ms_deform_attn_grid": Probe(
            (_random(1, 16, 6, 64), _random(1, 84, 6, 1, 4, 2), _random(1, 84, 6, 1, 4)), _grid
        ),
        "patch_embed": Probe(patch, _patch),
        "window_attention": Probe((_random(1, 64, 3, 2, 64),), _windows),
    }


def _device_for(backend: str) -> str:
    # Without a device Triton may still run, in its interpreter.
    return "cuda" if backend in ("cuda", "triton") and torch.cuda.is_available() else "cpu"


def why_not(op: str, probe: Probe, backend: str) -> str | None:
    """Return why ``backend`` cannot run the probe of ``op`` on this machine, or None."""
    try:
        probe.run(backend, *probe.to(_device_for(backend), torch.float32).tensors)
    except BackendUnavailable as error:
        # "op: backend 'name' cannot run: reason", or what the op has instead.
        return str(error).split("cannot run: ", 1)[-1].removeprefix(f"{op}: ")
    return None


def table() -> dict[str, dict[str, str | None]]:
    """Return {op: {backend: None where it runs here, else the reason}}."""
    return {
        op: {backend: why_not(op, probe, backend) for backend in NAMES}
        for op, probe in probes().items()
    }


def _results(probe: Probe, backend: str, cotangent: Tensor) -> list[Tensor]:
    out = probe.run(backend, *probe.tensors)
    return [out.detach(), *torch.autograd.grad(out, probe.tensors, cotangent.to(out))]


def check(probe: Probe, backend: str, dtype: torch.dtype) -> float:
    """Return the worst error of output and gradients, as a share of what is allowed.

    Allowed is twice the error of the reference in ``dtype`` plus four rounding steps at the peak.
    """
    device = _device_for(backend)
    rounded = probe.to(device, dtype)
    cotangent = _random(*probe.run("reference", *probe.tensors).shape).to(device, dtype)
    truth = _results(rounded.to(device, torch.float64), "reference", cotangent)
    reference = _results(rounded, "reference", cotangent)
    worst = 0.0
    for got, near, exact in zip(
        _results(rounded, backend, cotangent), reference, truth, strict=True
    ):
        allowed = 2 * (near - exact).abs().max() + 4 * torch.finfo(dtype).eps * exact.abs().max()
        # A NaN error must fail, and max() would drop it.
        share = ((got - exact).abs().max() / allowed).nan_to_num(float("inf")).item()
        worst = max(worst, share)
    return worst


def facts() -> dict[str, str]:
    """Return versions, devices and build facts, ready to print."""
    build = _native.build_info()
    result = {
        "vitadapter_fast": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "CUDA device": _cuda_device(),
        "CPU threads": str(torch.get_num_threads()),
        "extension": _native.unavailable_reason()
        or f"{build['build_type']}, compiler {build['compiler']}",
    }
    if build:
        result["CPU instruction set"] = str(build["cpu_isa"])
        result["CUDA kernels"] = _native.cuda_unavailable_reason() or (
            f"built for {_native.archs(build)} by nvcc {build['cuda_compiler']}"
        )
    return result


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _cuda_device() -> str:
    if torch.version.cuda is None:
        return "none: this torch is a CPU build"
    if not torch.cuda.is_available():
        return "none found"
    major, minor = torch.cuda.get_device_capability()
    return f"{torch.cuda.get_device_name()} (sm_{major}{minor})"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``python -m vitadapter_fast info``."""
    parser.add_argument(
        "--check",
        action="store_true",
        help="compare every backend that runs here with the reference; exit 1 on a mismatch",
    )


def run(args: argparse.Namespace) -> int:
    """Print the facts and the table; with ``--check`` run the self-test. Return the exit code."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    listing = Table(show_header=False, box=None, pad_edge=False)
    for name, fact in facts().items():
        listing.add_row(f"[bold]{name}[/bold]", fact)
    console.print(listing)
    found = table()
    reasons = list(dict.fromkeys(r for cells in found.values() for r in cells.values() if r))
    grid = Table(title="op x backend", title_justify="left")
    grid.add_column("op", no_wrap=True)
    for backend in NAMES:
        grid.add_column(backend, no_wrap=True)
    for op, cells in found.items():
        grid.add_row(op, *[f"no ({reasons.index(r) + 1})" if r else "yes" for r in cells.values()])
    console.print(grid)
    for number, reason in enumerate(reasons, 1):
        console.print(f"({number}) {reason}", markup=False, highlight=False)
    return _self_test(console, found) if args.check else 0


def _self_test(console: Any, found: dict[str, dict[str, str | None]]) -> int:
    start, failed = time.perf_counter(), 0
    all_probes = probes()
    runs = [(op, b) for op, cells in found.items() for b, reason in cells.items() if reason is None]
    for op, backend in runs:
        for dtype in (torch.float32, torch.bfloat16):
            share = check(all_probes[op], backend, dtype)
            failed += share > 1
            verdict = "ok" if share <= 1 else "[bold red]WRONG[/bold red]"
            name = str(dtype).removeprefix("torch.")
            console.print(f"{verdict} {op} {backend} {name}: {share:.0%} of the allowed error")
    seconds = time.perf_counter() - start
    if failed:
        sys.stderr.write(f"error: {failed} results are wrong: do not use these backends\n")
        return 1
    console.print(f"All {2 * len(runs)} checks passed in {seconds:.1f} s.")
    return 0
