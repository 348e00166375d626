# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A run's results in; pictures out."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from report import OURS, Result, Run  # noqa: E402

from vitadapter_fast.costs import BOXES, cost  # noqa: E402
from vitadapter_fast.presets import PRESETS  # noqa: E402

_COLORS = {
    OURS: "#d1495b",
    "plain PyTorch": "#8d99ae",
    "plain PyTorch, compiled": "#6a7ba2",
    "plain PyTorch + SDPA": "#66a182",
    "plain PyTorch + SDPA, compiled": "#3f6b4f",
    "original code": "#30638e",
    "timm ViT (no adapter)": "#edae49",
    "transformers ViT (no adapter)": "#7f5539",
    "OpenVINO": "#00798c",
    "onnxruntime": "#9c89b8",
    "grid_sample": "#8d99ae",
    "torch-ms-deform-attn": "#30638e",
}
_OTHERS = ["#57737a", "#b08968", "#a44a3f", "#5b8e7d", "#c9ada7"]
_STYLE: dict[str, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


def write_all(run: Run, folder: Path) -> list[str]:
    """Write every picture that the run has results for; return their file names."""
    folder.mkdir(parents=True, exist_ok=True)
    makers: dict[str, Callable[[], Figure | None]] = {}
    for clock in run.clocks:
        suffix = "" if clock == "eager" else f"_{clock}"
        for make in (throughput, operators, sizes):
            makers[f"{make.__name__}{suffix}.png"] = partial(make, run, clock)
    makers |= {"roofline.png": partial(roofline, run), "boxes.png": partial(boxes, run)}
    written = []
    for name, find in makers.items():
        figure = find()
        if figure is not None:
            figure.savefig(folder / name, dpi=120)
            plt.close(figure)
            written.append(name)
    return written


def _color(name: str) -> str:
    return _COLORS.get(name) or _OTHERS[sum(map(ord, name)) % len(_OTHERS)]


def _names(results: list[Result]) -> list[str]:
    found = [n for n in dict.fromkeys(r.contender for r in results) if not n.startswith("its ")]
    return sorted(found, key=lambda name: not name.startswith(OURS))


def _by(run: Run, clock: str) -> list[tuple[Result, float]]:
    """Return the results that have a time by a clock, with it."""
    timed = ((result, result.seconds(clock)) for result in run.results)
    return [(result, seconds) for result, seconds in timed if seconds is not None]


def _title(run: Run, clock: str) -> str:
    return f"{clock}, {run.device}" if len(run.clocks) > 1 else run.device


def throughput(run: Run, clock: str = "eager") -> Figure | None:
    """Images per second and peak memory of backbones, S to g, both passes."""
    times = {id(result): seconds for result, seconds in _by(run, clock)}
    results = [r for r in run.results if r.kind == "backbone" and id(r) in times]
    if not results:
        return None
    dtype = results[0].dtype
    results = [result for result in results if result.dtype == dtype]
    names, shapes = _names(results), list(dict.fromkeys(result.shape for result in results))

    def rate(result: Result) -> float:
        images: float = result.facts["images_per_s"] * result.median_s
        return images / times[id(result)]

    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(2, 2, figsize=(10, 6.4), sharex="col")
        for column, passes in enumerate(dict.fromkeys(result.passes for result in results)):
            found = {(r.shape, r.contender): r for r in results if r.passes == passes}
            _bars(axes[0][column], shapes, names, found, rate)
            held = {key: r for key, r in found.items() if r.facts.get("peak_bytes")}
            _bars(axes[1][column], shapes, names, held, lambda r: r.facts["peak_bytes"] / 2**30)
            axes[0][column].set(title=passes, yscale="log", ylabel="images / s")
            axes[1][column].set(ylabel="peak memory, GiB")
            axes[1][column].tick_params(axis="x", labelrotation=30)
        handles, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(names), 4))
        figure.suptitle(f"ViT-Adapter backbones, {dtype}\n{_title(run, clock)}", fontsize=11)
    return figure


def _bars(axis: Any, shapes: list[str], names: list[str], found: Any, value: Any) -> None:
    width = 0.8 / len(names)
    for index, name in enumerate(names):
        at = [i for i, shape in enumerate(shapes) if (shape, name) in found]
        heights = [value(found[shapes[i], name]) for i in at]
        left = [i + (index - (len(names) - 1) / 2) * width for i in at]
        axis.bar(left, heights, width * 0.94, color=_color(name), label=name)
        if name == OURS:
            for x, height in zip(left, heights, strict=True):
                axis.annotate(f"{height:.3g}", (x, height), ha="center", va="bottom", fontsize=8)
    axis.set_xticks(range(len(shapes)), shapes)
    axis.grid(axis="x", visible=False)


def operators(run: Run, clock: str = "eager") -> Figure | None:
    """How many times as long as ours every contender takes, operator by operator."""
    by_key: dict[tuple[str, ...], dict[str, float]] = {}
    for result, seconds in _by(run, clock):
        if result.kind != "backbone":
            by_key.setdefault(result.key, {})[result.contender] = seconds
    rows = [(key, row.pop(OURS), row) for key, row in by_key.items() if OURS in row]
    if not rows:
        return None
    with plt.rc_context(_STYLE):
        figure, axis = plt.subplots(figsize=(10, 1.4 + 0.24 * len(rows)))
        for y, (_, ours, others) in enumerate(rows):
            for name, seconds in others.items():
                axis.plot(seconds / ours, y, "o", color=_color(name), label=name)
        axis.axvline(1, color=_color(OURS), lw=2, label=OURS)
        labels = [f"{kind}  {shape}  {passes}" for (kind, shape, passes, _), _, _ in rows]
        axis.set_yticks(range(len(rows)), labels, fontsize=8)
        axis.set(xscale="log", xlabel="time, as a multiple of ours")
        axis.set_title(f"Operators\n{_title(run, clock)}", fontsize=11)
        axis.invert_yaxis()
        unique = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
        figure.legend(
            unique.values(), unique.keys(), loc="outside lower center", ncols=4, fontsize=8
        )
    return figure


def roofline(run: Run) -> Figure | None:
    """Arithmetic rate against intensity of ours, below what the device was measured to do."""
    clock = run.clocks[-1]  # the device's, where there is one
    results = [(r, s) for r, s in _by(run, clock) if r.contender == OURS and r.facts.get("flops")]
    dtype = results[0][0].dtype if results else ""
    if dtype not in run.machine.get("limits", {}):
        return None
    results = [(result, seconds) for result, seconds in results if result.dtype == dtype]
    rate, bandwidth = (run.machine["limits"][dtype][k] for k in ("flops_per_s", "bytes_per_s"))
    marks = dict(zip(dict.fromkeys(r.kind for r, _ in results), "os^Dv<>", strict=False))
    with plt.rc_context(_STYLE):
        figure, axis = plt.subplots(figsize=(8, 5))
        span = [r.facts["flops"] / r.facts["bytes"] for r, _ in results]
        low, high = min(span) / 2, max(*span, 4 * rate / bandwidth)
        ridge = rate / bandwidth
        line = [bandwidth * low / 1e9, rate / 1e9, rate / 1e9]
        axis.plot([low, ridge, high], line, color="#444", lw=1.5)
        for kind, mark in marks.items():
            points = [(r, seconds) for r, seconds in results if r.kind == kind]
            x = [r.facts["flops"] / r.facts["bytes"] for r, _ in points]
            y = [r.facts["flops"] / seconds / 1e9 for r, seconds in points]
            axis.plot(x, y, mark, ls="", label=kind, ms=6, alpha=0.8)
        axis.set(xscale="log", yscale="log", xlabel="FLOP / byte", ylabel="GFLOP/s")
        note = f"{rate / 1e9:,.0f} GFLOP/s, {bandwidth / 1e9:,.0f} GB/s, measured in this run"
        axis.annotate(note, (high, rate / 1e9), ha="right", va="bottom", fontsize=8)
        axis.set_title(f"Roofline, {OURS}, {dtype}\n{_title(run, clock)}", fontsize=11)
        axis.legend(fontsize=8)
    return figure


def sizes(run: Run, clock: str = "eager") -> Figure | None:
    """Time of the forward pass against pixels, of each model that has several sizes."""
    timed = _by(run, clock)
    results = [(r, s) for r, s in timed if r.kind == "backbone" and r.passes == "forward"]
    by_line: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for result, seconds in results:
        if result.dtype != results[0][0].dtype:
            continue
        model, size = result.shape.split(" ")[0].split("@")
        sides = [int(side) for side in size.split("x")]
        batch = int(result.shape.split(" x")[1]) if " x" in result.shape else 1
        point = (batch * sides[0] * sides[-1] / 1e6, 1e3 * seconds)
        by_line.setdefault((model, result.contender), []).append(point)
    lines = {key: sorted(points) for key, points in by_line.items() if len(points) > 1}
    lines = {key: points for key, points in lines.items() if not key[1].startswith("its ")}
    if not lines:
        return None
    with plt.rc_context(_STYLE):
        figure, axis = plt.subplots(figsize=(7, 4.5))
        for (model, name), points in lines.items():
            axis.plot(*zip(*points, strict=True), "o-", color=_color(name), label=f"{model} {name}")
        axis.set(xscale="log", yscale="log", xlabel="megapixels (all images)", ylabel="forward, ms")
        axis.set_title(f"Time against image size and batch\n{_title(run, clock)}", fontsize=11)
        axis.legend(fontsize=8)
    return figure


def boxes(run: Run) -> Figure | None:
    """Share of arithmetic, bytes moved and bytes saved per box of the model, S to g at 1024."""
    import torch

    from vitadapter_fast import ViTAdapter

    kinds = {"flops": "FLOPs", "bytes_moved": "bytes moved", "saved_bytes": "bytes saved"}
    with torch.device("meta"):
        models = {name: ViTAdapter(**PRESETS[name].model_kwargs()) for name in PRESETS}
    costs = {name: cost(model.train(), 1024) for name, model in models.items()}
    palette = ["#edae49", "#66a182", "#d1495b", "#30638e", "#7798ab", "#9c89b8", "#8d99ae"]
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(1, 3, figsize=(10, 4), sharey=True)
        for axis, (field, label) in zip(axes, kinds.items(), strict=True):
            bottom = [0.0] * len(costs)
            for index, box in enumerate(BOXES):
                shares = []
                for each in costs.values():
                    total = getattr(each.total, field)
                    part = next(part for part in each.boxes if part.name == box)
                    shares.append(100 * getattr(part, field) / total)
                axis.bar(list(costs), shares, bottom=bottom, color=palette[index], label=box)
                bottom = [a + b for a, b in zip(bottom, shares, strict=True)]
            axis.set_title(label, fontsize=10)
            axis.grid(axis="x", visible=False)
        axes[0].set_ylabel("share, %")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles[::-1], labels[::-1], loc="outside right center", fontsize=8)
        figure.suptitle("One image of 1024 x 1024 in training, from shapes alone", fontsize=11)
    return figure
