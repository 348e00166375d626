# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""What a training did in; progress and a table on the terminal, and pictures, out."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor

from ...errors import CommandError
from ...files import replacing
from .data import Target
from .loop import Log
from .scores import Scores

_INK, _FAINT = "#16191d", "#6b727b"
# Told apart by color-blind readers as well.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#7a3fa0", "#b8860b")
_LOSS_NAMES = {
    "loss_classifier": "class",
    "loss_box_reg": "box",
    "loss_mask": "mask",
    "loss_objectness": "proposal: object or not",
    "loss_rpn_box_reg": "proposal: box",
}
_DPI = 150
# Steps between two lines where stderr is no terminal, at most.
_LINE_STEPS = 100
# Of the picture of several photos.
_COLUMNS, _TILE_PX, _GAP_PX = 3, 640, 12


@contextmanager
def progress(*, is_shown: bool) -> Iterator[Callable[[int, int, Log], None]]:
    """Show a bar on stderr, or without a terminal a line now and then.

    Args:
        is_shown: Whether to show anything.

    Yields:
        What ``train`` calls after each step and evaluation.
    """
    console = Console(stderr=True, highlight=False, markup=False)
    is_bar = is_shown and sys.stderr.isatty()
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not is_bar,
    )

    told: Scores = {}

    def show(step: int, steps: int, log: Log) -> None:
        nonlocal told
        losses = [sum(each.values()) for each in log.losses[-_LINE_STEPS:]]
        text = f"epoch {log.epoch}, loss {sum(losses) / len(losses):.3f}"
        for kind, each in log.scores.items():
            text += f", {kind} AP50 {100 * each['ap50']:.1f}"
        bar.update(task, completed=step, total=steps, description=text)
        if is_shown and not is_bar and (log.scores is not told or step % _LINE_STEPS == 0):
            console.print(f"step {step} of {steps}, {text}")
        told = log.scores

    with bar:
        task = bar.add_task("", total=None)
        yield show


def print_scores(scores: Scores, facts: dict[str, str]) -> None:
    """Print average precisions, then the facts, on stdout."""
    console = Console(highlight=False, markup=False, emoji=False)
    table = Table(box=box.SIMPLE, header_style="bold", pad_edge=False)
    table.add_column("held-out photos")
    for kind in scores:
        table.add_column(kind, justify="right")
    for name in ("ap", "ap50", "ap75"):
        table.add_row(name.upper(), *(f"{100 * each[name]:.1f}" for each in scores.values()))
    for name in scores["box"]["ap50_of"]:
        values = (each["ap50_of"][name] for each in scores.values())
        table.add_row(f"  AP50 of {name}", *(f"{100 * value:.1f}" for value in values))
    console.print(table)
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, text in facts.items():
        grid.add_row(name, text)
    console.print(grid)


def draw_losses(path: Path, losses: Sequence[dict[str, float]], steps_per_epoch: int) -> None:
    """Draw the loss of every step, its running mean, and the means of its parts.

    Args:
        path: Of the picture, a PNG.
        losses: Of each step, by name.
        steps_per_epoch: Also the width of the running mean.

    Raises:
        CommandError: The picture cannot be written.
    """
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    epochs = np.arange(1, len(losses) + 1) / steps_per_epoch
    total = np.array([sum(each.values()) for each in losses])
    width = min(steps_per_epoch, len(losses))
    axes.plot(epochs, total, color=_FAINT, alpha=0.35, linewidth=0.7)
    axes.plot(epochs[width - 1 :], _means(total, width), color=_INK, linewidth=2, label="all")
    for color, name in zip(_COLORS, losses[0], strict=False):
        means = _means(np.array([each[name] for each in losses]), width)
        label = _LOSS_NAMES.get(name, name)
        axes.plot(epochs[width - 1 :], means, color=color, linewidth=1.3, label=label)
    axes.set(xlabel="epoch", ylabel="loss", xlim=(0, epochs[-1]))
    axes.set_ylim(0, 1.05 * float(np.quantile(total, 0.99)))
    axes.set_title("Training loss: each step, and means over an epoch", loc="left", color=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    axes.legend(frameon=False)
    with replacing(path, CommandError) as part:
        figure.savefig(part, format="png", dpi=_DPI)


def draw_detections(
    image: Tensor,
    found: Target,
    names: Sequence[str],
    least: float,
    truth: Target | None = None,
) -> Image.Image:
    """Return a photo with boxes, class names and scores drawn over it, and masks if there are any.

    Args:
        image: The photo, [3, H, W], uint8.
        found: Of ``detect``.
        names: Of the labels 1, 2, ...
        least: Score from which a detection is drawn.
        truth: Annotations, which get thin lines.
    """
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    draw = ImageDraw.Draw(picture)
    width = max(1, round(max(picture.size) / 400))
    font = ImageFont.load_default(max(10, 5 * width))
    for edges in [] if truth is None else truth["boxes"].tolist():
        draw.rectangle(edges, outline=_INK)
    for index in (found["scores"] >= least).nonzero()[:, 0].tolist():
        label = int(found["labels"][index])
        color = _COLORS[(label - 1) % len(_COLORS)]
        if "masks" in found:
            inside = (found["masks"][index, 0] >= 0.5).numpy()
            picture.paste(color, mask=Image.fromarray((inside * 110).astype(np.uint8)))
        left, top, right, bottom = found["boxes"][index].tolist()
        draw.rectangle((left, top, right, bottom), outline=color, width=width)
        text = f"{names[label - 1]} {float(found['scores'][index]):.2f}"
        place = (left + width, max(0, top))
        draw.rectangle(draw.textbbox(place, text, font=font), fill=color)
        draw.text(place, text, fill="white", font=font)
    return picture


def draw_sheet(path: Path, pictures: Sequence[Image.Image]) -> None:
    """Draw pictures side by side.

    Raises:
        CommandError: The picture cannot be written.
    """
    columns = min(_COLUMNS, len(pictures))
    rows = -(-len(pictures) // columns)
    tiles = [picture.copy() for picture in pictures]
    for tile in tiles:
        tile.thumbnail((_TILE_PX, _TILE_PX))
    cell = [max(tile.size[axis] for tile in tiles) + _GAP_PX for axis in (0, 1)]
    sheet = Image.new("RGB", (columns * cell[0] + _GAP_PX, rows * cell[1] + _GAP_PX), "white")
    for index, tile in enumerate(tiles):
        row, column = divmod(index, columns)
        sheet.paste(tile, (_GAP_PX + column * cell[0], _GAP_PX + row * cell[1]))
    with replacing(path, CommandError) as part:
        sheet.save(part, "PNG")


def _means(values: npt.NDArray[np.float64], width: int) -> npt.NDArray[np.float64]:
    return np.convolve(values, np.full(width, 1 / width), "valid")
