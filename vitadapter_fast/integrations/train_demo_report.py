# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""What a training did in; progress and a table on the terminal, and two pictures out."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from ..errors import CommandError
from ..files import replacing
from .train_demo_data import Photo, Scores, Split, Target

_INK, _FAINT = "#16191d", "#6b727b"
# Told apart by color-blind readers as well, and seen on pink.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#7a3fa0", "#b8860b")
_LOSS_NAMES = {
    "loss_classifier": "class",
    "loss_box_reg": "box",
    "loss_objectness": "proposal: object or not",
    "loss_rpn_box_reg": "proposal: box",
}
_DPI = 150


@contextmanager
def progress(steps: int) -> Iterator[Callable[[int, str], None]]:
    """Show a bar on stderr, or without a terminal a line whenever the text changes.

    Args:
        steps: To do.

    Yields:
        A function to call with the number of steps done and a text.
    """
    console = Console(stderr=True, highlight=False)
    bar = Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not sys.stderr.isatty(),
    )
    last = ""

    def show(done: int, text: str) -> None:
        nonlocal last
        bar.update(task, completed=done, description=text)
        if bar.disable and text != last:
            console.print(text)
        last = text

    with bar:
        task = bar.add_task("", total=steps)
        yield show


def print_scores(untrained: Scores, trained: Scores, facts: dict[str, str]) -> None:
    """Print both scores side by side, then the facts, on stdout."""
    console = Console(highlight=False, markup=False, emoji=False)
    table = Table(box=box.SIMPLE, header_style="bold", pad_edge=False)
    table.add_column("held-out photos")
    table.add_column("untrained", justify="right")
    table.add_column("trained", justify="right")
    rows = {"box AP": (untrained.ap, trained.ap), "box AP50": (untrained.ap50, trained.ap50)}
    for name, value in trained.ap50_of.items():
        rows[f"  {name}"] = (untrained.ap50_of[name], value)
    for name, values in rows.items():
        table.add_row(name, *(f"{100 * value:.1f}" for value in values))
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
    _save(figure, path)


def draw_detections(
    path: Path, split: Split, found: Sequence[Target], *, count: int = 6, least: float = 0.5
) -> None:
    """Draw photos with what was detected over what there is.

    Args:
        path: Of the picture, a PNG.
        split: Photos and their boxes.
        found: Detections in each photo.
        count: Photos to draw, spread over the split.
        least: Score from which a detection is drawn.

    Raises:
        CommandError: The picture cannot be written.
    """
    picks = np.unique(np.linspace(0, len(split.photos) - 1, count).round().astype(int))
    columns = min(3, len(picks))
    rows = -(-len(picks) // columns)
    H, W = split.photos[0].image.shape[1:]
    layout = ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.05)
    figure = Figure(figsize=(4.6 * columns, 4.6 * rows * H / W + 0.9), layout=layout)
    for place, index in enumerate(picks, start=1):
        axes = figure.add_subplot(rows, columns, place)
        _draw_photo(axes, split.photos[index], found[index], least)
    colors = dict(zip(split.classes.values(), _COLORS, strict=False))
    handles = [
        Line2D([], [], color=color, linewidth=2, label=name) for name, color in colors.items()
    ]
    truth = Line2D([], [], color=_INK, linewidth=1.2, linestyle=(0, (3, 2)), label="annotated")
    figure.legend(handles=[*handles, truth], loc="outside lower center", ncols=5, frameon=False)
    title = f"Detections in held-out photos, with scores from {least:g}"
    figure.suptitle(title, x=0.01, ha="left", color=_INK)
    _save(figure, path)


def _draw_photo(axes: Axes, photo: Photo, found: Target, least: float) -> None:
    axes.imshow(photo.image.permute(1, 2, 0).numpy(), interpolation="lanczos")
    axes.set_axis_off()
    axes.set_title(photo.name, fontsize=8, color=_FAINT, pad=3)
    for label, edges, score in zip(
        found["labels"].tolist(), found["boxes"].tolist(), found["scores"].tolist(), strict=True
    ):
        if score < least:
            continue
        color = _COLORS[(label - 1) % len(_COLORS)]
        axes.add_patch(_rectangle(edges, edgecolor=color, linewidth=1.6))
        axes.text(
            edges[0] + 1.5,
            edges[1] + 1.5,
            f"{score:.2f}".removeprefix("0"),
            fontsize=6,
            color="white",
            va="top",
            bbox={"facecolor": color, "edgecolor": "none", "pad": 0.8},
        )
    for edges in photo.target["boxes"].tolist():
        axes.add_patch(_rectangle(edges, edgecolor=_INK, linewidth=0.9, linestyle=(0, (3, 2))))


def _rectangle(edges: Sequence[float], **style: object) -> Rectangle:
    left, top, right, bottom = edges
    return Rectangle((left, top), right - left, bottom - top, fill=False, **style)  # type: ignore[arg-type]


def _means(values: "np.typing.NDArray[np.float64]", width: int) -> "np.typing.NDArray[np.float64]":
    return np.convolve(values, np.full(width, 1 / width), "valid")


def _save(figure: Figure, path: Path) -> None:
    with replacing(path, CommandError) as part:
        figure.savefig(part, format="png", dpi=_DPI)
