# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""``python -m vitadapter_fast info``: what runs here, whether it is right, what a model costs."""

import argparse
import sys
import time
from typing import Any

import torch

from ..builders import MODELS, vit_adapter
from ..checks import box_reason, boxes, check, check_box, facts, probes, table
from ..costs import cost
from ..images import MAX_BATCH
from ..ops._backends import NAMES
from .options import add_size, whole_number


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
        choices=MODELS,
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
    _print_reasons(console, reasons)
    _print_boxes(console)
    return _self_test(console, found) if args.check else 0


def _print_reasons(console: Any, reasons: list[str]) -> None:
    for number, reason in enumerate(reasons, 1):
        console.print(f"({number}) {reason}", markup=False, highlight=False)


_MODES = {"inference": False, "training": True}


def _print_boxes(console: Any) -> None:
    from rich.table import Table

    found = {
        name: [box_reason(box, is_training=mode) for mode in _MODES.values()]
        for name, box in boxes().items()
    }
    reasons = list(dict.fromkeys(r for cells in found.values() for r in cells if r))
    grid = Table(title="boxes of the model, fused in float32", title_justify="left")
    for column in ("box", *_MODES):
        grid.add_column(column, no_wrap=True)
    for name, cells in found.items():
        grid.add_row(name, *[f"no ({reasons.index(r) + 1})" if r else "yes" for r in cells])
    console.print(grid)
    _print_reasons(console, reasons)


def _print_cost(console: Any, name: str, hw: tuple[int, int], batch: int) -> int:
    from rich.table import Table

    with torch.device("meta"):
        model = vit_adapter(name).train()
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
    count = 2 * len(runs)
    for box_name, box in boxes().items():
        for mode, is_training in _MODES.items():
            share = check_box(box, is_training=is_training)
            failed, count = failed + (share > 1), count + 1
            verdict = "ok" if share <= 1 else "[bold red]WRONG[/bold red]"
            console.print(f"{verdict} {box_name} {mode}: {share:.0%} of the allowed error")
    seconds = time.perf_counter() - start
    if failed:
        sys.stderr.write(f"error: {failed} results are wrong: do not use these backends\n")
        return 1
    console.print(f"All {count} checks passed in {seconds:.1f} s.")
    return 0
