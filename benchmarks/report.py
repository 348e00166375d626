# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Results of ``pytest benchmarks/ --benchmark-json=FILE`` in; tables, pictures, comparisons out.

A time is of one of two clocks: "eager" is the wall's, until the results are there, and "graph" the
device's, of a captured graph. On GPUs the first may be Python's alone. A ratio is of one clock.

python benchmarks/report.py FILE [FILE ...] -o FOLDER   tables (report.md) and pictures
python benchmarks/report.py --readme FILE               anew: tables of README and docs, a picture
python benchmarks/report.py --compare OLD NEW           what got slower by more than the noise
"""

import argparse
import json
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from results import write_whole

OURS = "vitadapter_fast"
CLOCKS = ("eager", "graph")
MARKS = ("<!-- benchmark table -->", "<!-- end of benchmark table -->")
_ROOT = Path(__file__).resolve().parents[1]
# Page -> the shapes of its table; None: all.
PAGES = {_ROOT / "README.md": ("s@512", "b@512"), _ROOT / "docs" / "speed.md": None}
_LABELS = {
    "backbone": "Backbone",
    "ms_deform_attn": "Multi-scale deformable attention",
    "patch_embed": "Patch embedding with resized position table",
    "window_attention": "Attention within windows of 14 x 14",
    "rope": "Rotary position embedding of DINOv3",
    "dwconv_gelu": "Depthwise convolution of the token pyramid with GELU",
    "batch_norm": "Batch norm of the largest map in training, NCHW out",
    "int8_linear": "Linear layer with weights of 8 bits, with the residual",
    "feed_forward": "Second layer of the feed-forward, with GELU and the residual",
    "stem_convolution": "Convolution of 3 x 3 pixels of the prior's stem",
    "sweep_value_gradient": "Gradient of the value, by atomics and by records",
    "sweep_generic": "Shapes without a specialized CUDA kernel",
}


@dataclass(frozen=True)
class Result:
    """One contender on one shape, one pass."""

    kind: str
    shape: str
    passes: str
    contender: str
    dtype: str
    version: str
    median_s: float
    iqr_s: float
    facts: dict[str, Any]

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.kind, self.shape, self.passes, self.dtype

    def seconds(self, clock: str) -> float | None:
        """Return the time by a clock, or None where it was not captured."""
        if clock == "eager":
            return self.median_s
        device_ms = self.facts.get("device_ms")
        return None if device_ms is None else float(device_ms) / 1e3

    def noise(self, clock: str) -> float:
        """Return the interquartile range over the median."""
        if clock == "eager":
            return self.iqr_s / self.median_s
        return float(self.facts.get("device_iqr_ms", 0.0) / self.facts["device_ms"])


@dataclass(frozen=True)
class Run:
    """One file.

    Attributes:
        machine: Where it was measured.
        results: What was.
        is_complete: Whether every row was tried: nothing cut the run short.
        not_timed: Reasons of rows without a time, by key and contender.
    """

    machine: dict[str, Any]
    results: list[Result]
    is_complete: bool = True
    not_timed: dict[tuple[str, ...], str] = field(default_factory=dict)

    @property
    def clocks(self) -> tuple[str, ...]:
        """The clocks that it has times of."""
        has_graphs = any(result.seconds("graph") is not None for result in self.results)
        return CLOCKS if has_graphs else CLOCKS[:1]

    @property
    def device(self) -> str:
        machine = self.machine
        threads = "" if "cuda" in machine else f", {machine['threads']} threads"
        return f"{machine['device']}{threads}, torch {machine['torch']}"


class BadFile(Exception):
    """A file is not what it should be; the text says which and why."""


def load(path: Path) -> Run:
    """Read a file of these benchmarks, also of a run that was cut short.

    Raises:
        BadFile: It is missing, no JSON, or not of these benchmarks.
    """
    try:
        document = json.loads(path.read_text())
        results = []
        for each in document["benchmarks"]:
            facts, stats = dict(each["extra_info"]), each["stats"]
            names = [facts.pop(k) for k in ("kind", "shape", "passes", "contender", "dtype")]
            version = facts.pop("version")
            results.append(Result(*names, version, stats["median"], stats["iqr"], facts))
        refused = {}
        for each in document.get("not_timed", ()):
            names = [each[k] for k in ("kind", "shape", "passes", "dtype", "contender")]
            refused[tuple(names)] = each["reason"]
        is_complete = document.get("is_complete", True)  # pytest-benchmark writes at the end alone
        run = Run(document["machine_info"], results, is_complete, refused)
        _ = run.device
    except OSError as error:
        raise BadFile(f"report: cannot read {path}: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadFile(f"report: {path} is not JSON: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise BadFile(
            f"report: {path} was not written by `pytest benchmarks/ --benchmark-json=FILE`: "
            f"{error!r} is missing or of another kind"
        ) from error
    if not results:
        raise BadFile(f"report: {path} holds no results")
    return run


def tables(run: Run) -> str:
    """Return every result as Markdown: a table for each kind, times with ratios to ours."""
    text = [f"# {run.device}", ""]
    if not run.is_complete:
        text += [f"Partial: the run was cut short after {len(run.results)} results.", ""]
    for kind in dict.fromkeys(result.kind for result in run.results):
        of_kind = [result for result in run.results if result.kind == kind]
        text += [f"## {_LABELS.get(kind, kind)}", "", *_table(run, of_kind), ""]
    if run.not_timed:
        text += ["## Not timed", ""]
        text += [f"- {' '.join(key)}: {reason}" for key, reason in run.not_timed.items()] + [""]
    return "\n".join(text)


def _table(run: Run, results: list[Result]) -> list[str]:
    """Lines of one table: a row for each shape and pass, a column for each contender and clock."""
    names = list(dict.fromkeys(result.contender for result in results))
    names.sort(key=lambda name: not name.startswith(OURS))
    versions = {result.contender: result.version for result in results}
    heads = [f"{name} {versions[name]}" if name[0] != "i" else name for name in names]
    columns = [f"{head}{_suffix(run, clock)}" for head in heads for clock in run.clocks]
    lines = ["| ms | pass | dtype | " + " | ".join(columns) + " | of the limit | peak MiB |"]
    lines.append("|---|---|---|" + "---:|" * (len(columns) + 2))
    for key in dict.fromkeys(result.key for result in results):
        row = {result.contender: result for result in results if result.key == key}
        ours = row.get(OURS)
        cells = []
        for name in names:
            # A reason stands once, in the first of the contender's columns.
            reason = run.not_timed.get((*key, name), "")
            empty = (reason if len(reason) < 20 else "not timed", *[""] * len(run.clocks))
            clocks = zip(run.clocks, empty, strict=False)
            cells += [_cell(row.get(name), ours, clock) or why for clock, why in clocks]
        facts = ours.facts if ours else {}
        share, peak = facts.get("share_of_limit"), facts.get("peak_bytes")
        cells.append("" if share is None else f"{share:.0%}")
        cells.append("" if not peak else f"{peak / 2**20:,.0f}")
        lines.append(f"| {key[1]} | {key[2]} | {key[3]} | " + " | ".join(cells) + " |")
    return lines


def _suffix(run: Run, clock: str) -> str:
    return f", {clock}" if len(run.clocks) > 1 else ""


def _cell(result: Result | None, ours: Result | None, clock: str) -> str:
    seconds = result and result.seconds(clock)
    if result is None or seconds is None:
        return ""
    text = f"{1e3 * seconds:.3g}" if seconds < 1 else f"{1e3 * seconds:,.0f}"
    if result.contender == OURS:
        return f"**{text}**"
    own = ours and ours.seconds(clock)
    return f"{text} ({seconds / own:.1f}x)" if own else text


def readme_table(run: Run, shapes: Collection[str] | None = None) -> str:
    """Return a page's table: backbones of these shapes, throughput and memory against peers."""
    results = [
        result
        for result in run.results
        if result.kind == "backbone" and (shapes is None or result.shape in shapes)
    ]
    names = [name for name in dict.fromkeys(r.contender for r in results) if name[0] != "i"]
    columns = [f"{name}{_suffix(run, clock)}" for name in names for clock in run.clocks]
    about = "images/s (how many times as fast ours is), peak memory of the process"
    lines = [f"{run.device}; {about}:", ""]
    lines.append("| | pass | " + " | ".join(columns) + " | ours, GiB | plain PyTorch, GiB |")
    lines.append("|---|---|" + "---:|" * (len(columns) + 2))
    for key in dict.fromkeys(result.key for result in results):
        row = {result.contender: result for result in results if result.key == key}
        if OURS not in row:
            continue
        cells = [_rate(row.get(name), row[OURS], clock) for name in names for clock in run.clocks]
        for name in (OURS, "plain PyTorch"):
            peak = row[name].facts["peak_bytes"] if name in row else 0
            cells.append(f"{peak / 2**30:.2f}" if peak else "")
        if len({cell for cell in cells if cell}) > 2:
            dtype = f" {key[3]}" if len({result.dtype for result in results}) > 1 else ""
            lines.append(f"| {key[1]}{dtype} | {key[2]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _rate(result: Result | None, ours: Result, clock: str) -> str:
    """Return images/s by a clock, and ours over it."""
    seconds, own = result and result.seconds(clock), ours.seconds(clock)
    if result is None or seconds is None:
        return ""
    rate = result.facts["images_per_s"] * result.median_s / seconds
    if result.contender == OURS:
        return f"**{rate:.3g}**"
    return f"{rate:.3g} ({seconds / own:.1f}x)" if own else f"{rate:.3g}"


def compare(old: Run, new: Run) -> list[str]:
    """Return a line for each of our results that got slower by more than the noise, by each clock.

    The noise of a row is the larger of both spreads, interquartile range over median, at least 5 %.
    """
    if old.machine["device"] != new.machine["device"]:
        raise BadFile(
            f"report: compare runs of one device, got {old.machine['device']} and "
            f"{new.machine['device']}"
        )
    before = {(*r.key, r.contender): r for r in old.results if r.contender.startswith(OURS)}
    lines = []
    for result in new.results:
        was = before.get((*result.key, result.contender))
        for clock in new.clocks if was is not None else ():
            assert was is not None
            now_s, was_s = result.seconds(clock), was.seconds(clock)
            if now_s is None or was_s is None:
                continue
            noise = max(0.05, was.noise(clock), result.noise(clock))
            if now_s > (1 + noise) * was_s:
                what = " ".join((*result.key, result.contender)) + _suffix(new, clock)
                lines.append(
                    f"{what}: {1e3 * was_s:.3g} ms -> {1e3 * now_s:.3g} ms, "
                    f"{now_s / was_s - 1:+.0%} (noise {noise:.0%})"
                )
    return lines


def write_readme(path: Path, pages: Mapping[Path, Collection[str] | None] = PAGES) -> None:
    """Put tables of ``path`` between the marks of each page, and the picture beside ``path``."""
    from figures import throughput

    run = load(path)
    if not run.is_complete:
        raise BadFile(f"report: {path} is partial: the README has whole runs")
    texts = {}
    for page, shapes in pages.items():
        found = {result.shape for result in run.results if result.kind == "backbone"}
        if lacking := sorted(set(shapes or ()) - found):
            raise BadFile(f"report: {path} has no backbone {', '.join(lacking)}, for {page}")
        text = page.read_text()
        if any(text.count(mark) != 1 for mark in MARKS):
            raise BadFile(f"report: {page} must have each of {' and '.join(MARKS)} once")
        before, rest = text.split(MARKS[0])
        after = rest.split(MARKS[1])[1]
        table = readme_table(run, shapes)
        texts[page] = before + MARKS[0] + "\n" + table + "\n" + MARKS[1] + after
    for page, text in texts.items():
        write_whole(page, text)
    throughput(run).savefig(path.with_suffix(".png"), dpi=110)


def main() -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("-o", "--out", type=Path, default=Path("report"))
    parser.add_argument("--readme", type=Path)
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("OLD", "NEW"))
    args = parser.parse_args()
    try:
        if args.compare:
            slower = compare(*(load(path) for path in args.compare))
            sys.stdout.writelines(f"{line}\n" for line in slower or ["nothing got slower"])
            return bool(slower)
        if args.readme:
            write_readme(args.readme)
            return 0
        if not args.files:
            parser.error("name a file, or --readme or --compare")
        import figures

        for path in args.files:
            run = load(path)
            if not run.is_complete:
                sys.stderr.write(f"report: {path} is partial: its run was cut short\n")
            folder = args.out / path.stem if len(args.files) > 1 else args.out
            pictures = figures.write_all(run, folder)
            links = "\n\n".join(f"![{name}]({name})" for name in pictures)
            write_whole(folder / "report.md", f"{tables(run)}\n{links}\n")
    except BadFile as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
