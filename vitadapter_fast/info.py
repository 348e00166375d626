# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""What runs here and why not: the op x backend table, the facts of the build, and a self-test.

And what a model costs anywhere: ``cost``.
"""

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

from . import model as presets
from . import ops
from .command import add_size, whole_number
from .costs import BoxCost, Cost, cost
from .errors import BackendUnavailable
from .images import MAX_BATCH
from .ops import _native
from .ops._backends import NAMES
from .version import __version__

__all__ = ["BoxCost", "Cost", "Probe", "check", "cost", "facts", "probes", "table", "why_not"]

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
    return torch.randn(*shape, generator=generator, dtype=torch.float64, device="cpu")


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


def _norm(backend: str, tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    wide = torch.promote_types(tokens.dtype, torch.float32)
    weight, bias = weight.to(wide), bias.to(wide)
    return ops.batch_norm(tokens, weight, bias, has_planes=True, backend=backend)[0]


def probes() -> dict[str, Probe]:
    """Return one probe for every op, by the op's name."""
    weights = _random(1, 16, 6, 12).softmax(-1).view(1, 16, 6, 3, 4)
    locations = _random(1, 16, 6, 3, 4, 2) / 4 + 0.5
    patch = (_random(1, 3, 64, 96), _random(32, 3, 16, 16), _random(32), _random(25, 32))
    norm = (_random(2, 64, 96), _random(96), _random(96))
    conv = (_random(1, 84, 96), _random(96, 1, 3, 3), _random(96))
    return {
        "batch_norm": Probe(norm, _norm),
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
    """Return why ``backend`` cannot run the probe of ``op`` on this machine, or None.

    Args:
        op: Name of the op, as ``probes`` has it.
        probe: Its call; runs on the device of the backend, in float32.
        backend: "cuda", "triton", "cpu" or "reference".
    """
    try:
        probe.run(backend, *probe.to(_device_for(backend), torch.float32).tensors)
    except BackendUnavailable as error:
        # "op: backend 'name' cannot run: reason", or what the op has instead.
        told, is_refused, reason = str(error).partition("cannot run: ")
        if backend == "cuda" and is_refused and not torch.cuda.is_available():
            # A tensor of the CPU was refused for being one; the table is about the machine.
            reason = _native.cuda_unavailable_reason() or reason
        return reason or told.removeprefix(f"{op}: ")
    except Exception as error:  # the table is for machines where something is broken
        return f"it fails here: {type(error).__name__}: {error}"
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

    Args:
        probe: The call, in float64 on the CPU.
        backend: A backend that can run it here.
        dtype: float32, float16 or bfloat16, for the tensors of the call.

    Returns:
        At most 1 where the backend is right; infinity where it gives NaN.

    Raises:
        BackendUnavailable: The backend cannot run here.
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
    if torch.version.cuda is None and torch.version.hip is None:
        return "none: this torch is a CPU build"
    if not torch.cuda.is_available():
        return "none found"
    if torch.version.hip is not None:
        name = getattr(torch.cuda.get_device_properties(0), "gcnArchName", "AMD")
        return f"{torch.cuda.get_device_name()} ({name}, ROCm {torch.version.hip})"
    major, minor = torch.cuda.get_device_capability()
    return f"{torch.cuda.get_device_name()} (sm_{major}{minor})"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``python -m vitadapter_fast info``."""
    task = parser.add_mutually_exclusive_group()
    task.add_argument(
        "--check",
        action="store_true",
        help="compare every backend that runs here with the reference; exit 1 on a mismatch",
    )
    task.add_argument(
        "--cost",
        choices=tuple(presets.PRESETS),
        help="print what a forward pass of this model costs in training, box by box, from shapes "
        "alone",
    )
    add_size(parser, "with --cost, that of every image", _SIZE, is_preset=False)
    parser.add_argument(
        "--batch",
        type=whole_number(1, MAX_BATCH),
        metavar="N",
        help="with --cost: images that run together (default: 1)",
    )


_SIZE = (1024, 1024)


def run(args: argparse.Namespace) -> int:
    """Print the facts and the table; with ``--check`` run the self-test, with ``--cost`` the costs.

    Returns:
        The exit code.
    """
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if args.cost is not None:
        return _print_cost(console, args.cost, args.size or _SIZE, args.batch or 1)
    if args.size is not None or args.batch is not None:
        sys.stderr.write("error: --size and --batch need --cost; add --cost s, b, l or g\n")
        return 1
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


def _print_cost(console: Any, name: str, hw: tuple[int, int], batch: int) -> int:
    from rich.table import Table

    with torch.device("meta"):
        model = getattr(presets, f"vit_adapter_{name}")().train()
    costs = cost(model, hw, batch)
    images = "1 image" if batch == 1 else f"{batch} images"
    grid = Table(
        title=f"vit_adapter_{name}: one forward pass in training, {images} of {hw[0]} x {hw[1]}, "
        "float32",
        title_justify="left",
        caption="moved: inputs and parameters read once, outputs written once, call by call; "
        "saved: kept for backward",
        caption_justify="left",
    )
    grid.add_column("box", no_wrap=True)
    for column in ("GFLOP", "share", "moved", "params", "saved", "share"):
        grid.add_column(column, no_wrap=True, justify="right")
    total = costs.total
    for box in (*costs.boxes, total):
        grid.add_row(
            box.name,
            _billions(box.flops),
            f"{box.flops / total.flops:.0%}",
            _mebibytes(box.bytes_moved),
            _mebibytes(box.parameter_bytes),
            _mebibytes(box.saved_bytes),
            f"{box.saved_bytes / total.saved_bytes:.0%}",
            end_section=box is costs.boxes[-1],
        )
    console.print(grid)
    return 0


# At 80 columns there is room for nine characters: a table that is cut says nothing.
_UNITS = {"MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "PiB": 2**50, "EiB": 2**60}


def _mebibytes(num_bytes: int) -> str:
    unit = next((name for name, size in _UNITS.items() if num_bytes < size * 2**10), "EiB")
    value = num_bytes / _UNITS[unit]
    digits = 0 if value >= 999.95 else 1 if value >= 99.995 or unit == "MiB" else 2
    return f"{value:,.{digits}f} {unit}"


def _billions(count: int) -> str:
    return f"{count / 1e9:,.1f}" if count < 1e15 else f"{count / 1e9:.3g}"


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
