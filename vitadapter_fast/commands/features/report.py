# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""What a run of the features command did in, tables on the terminal out."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor

# Photo sizes whose maps the table lists; the rest are counted.
_LISTED_SIZES = 3


@dataclass
class Totals:
    """What the runs of the model add up to.

    Attributes:
        seconds: In the model.
        photos: That went through it.
        counts: Photos of each size (H, W).
        levels: Shape without the batch, and dtype, of the four maps of each size.
    """

    seconds: float = 0.0
    photos: int = 0
    counts: Counter[tuple[int, int]] = field(default_factory=Counter)
    levels: dict[tuple[int, int], list[tuple[tuple[int, ...], torch.dtype]]] = field(
        default_factory=dict
    )

    def add(self, image: Tensor, maps: Sequence[Tensor], seconds: float) -> None:
        """Add one run: images [B, I, H, W], the maps they gave, and how long it took."""
        B, _, H, W = image.shape
        self.seconds += seconds
        self.photos += B
        self.counts[H, W] += B
        self.levels[H, W] = [(tuple(each.shape[1:]), each.dtype) for each in maps]


@contextmanager
def progress(total: int, *, is_shown: bool) -> Iterator[Callable[[int], None]]:
    """Show a bar on stderr, if that is a terminal.

    Args:
        total: Photos to do.
        is_shown: Whether to show it at all.

    Yields:
        A function to call with the number of photos done.
    """
    bar = Progress(
        TextColumn("photos"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not (is_shown and sys.stderr.isatty()),
    )
    with bar:
        task = bar.add_task("photos", total=total)
        yield lambda done: bar.update(task, completed=done)


def print_report(totals: Totals, strides: Sequence[int], facts: dict[str, str]) -> None:
    """Print the maps of each photo size, then the facts, on stdout.

    Args:
        totals: At least one photo.
        strides: Stride of each level.
        facts: Name and value; those of random weights stand out.
    """
    # File names may look like markup.
    console = Console(highlight=False, markup=False, emoji=False)
    sizes = totals.counts.most_common()
    table = Table(box=box.SIMPLE, header_style="bold", pad_edge=False)
    has_sizes = len(sizes) > 1
    if has_sizes:
        table.add_column("photos [H x W]")
    for heading in ("level", "stride"):
        table.add_column(heading, justify="right")
    table.add_column("shape [C, h, w]")
    table.add_column("dtype")
    for (H, W), count in sizes[:_LISTED_SIZES]:
        for index, (shape, dtype) in enumerate(totals.levels[H, W]):
            row = (
                str(index + 1),
                str(strides[index]),
                " x ".join(map(str, shape)),
                str(dtype).removeprefix("torch."),
            )
            label = f"{count} of {H} x {W}" if index == 0 else ""
            table.add_row(*((label, *row) if has_sizes else row), end_section=index == 3)
    console.print(table)
    if len(sizes) > _LISTED_SIZES:
        console.print(f"and photos of {len(sizes) - _LISTED_SIZES} other sizes\n")

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in facts.items():
        grid.add_row(name, value, style="yellow" if "random (" in value else None)
    console.print(grid)
