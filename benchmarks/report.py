# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Results of ``pytest benchmarks/ --benchmark-json=FILE`` in; tables, pictures, comparisons out.

python benchmarks/report.py FILE [FILE ...] -o FOLDER   tables (report.md) and pictures
python benchmarks/report.py --readme FILE               the README's table and its picture, anew
python benchmarks/report.py --compare OLD NEW           what got slower by more than the noise
"""

import argparse
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OURS = "vitadapter_fast"
MARKS = ("<!-- benchmark table -->", "<!-- end of benchmark table -->")
_README = Path(__file__).resolve().parents[1] / "README.md"
_LABELS = {
    "backbone": "Backbone",
    "ms_deform_attn": "Multi-scale deformable attention",
    "patch_embed": "Patch embedding with resized position table",
    "window_attention": "Attention within windows of 14 x 14",
    "dwconv_gelu": "Depthwise convolution of the token pyramid with GELU",
    "batch_norm": "Batch norm of the largest map in training, NCHW out",
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


@dataclass(frozen=True)
class Run:
    """One file: where it was measured, and the results."""

    machine: dict[str, Any]
    results: list[Result]

    @property
    def device(self) -> str:
        machine = self.machine
        threads = "" if "cuda" in machine else f", {machine['threads']} threads"
        return f"{machine['device']}{threads}, torch {machine['torch']}"


class BadFile(Exception):
    """A file is not what it should be; the text says which and why."""


def load(path: Path) -> Run:
    """Read a file of pytest-benchmark.

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
        run = Run(document["machine_info"], results)
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
    for kind in dict.fromkeys(result.kind for result in run.results):
        of_kind = [result for result in run.results if result.kind == kind]
        text += [f"## {_LABELS.get(kind, kind)}", "", *_table(of_kind), ""]
    return "\n".join(text)


def _table(results: list[Result]) -> list[str]:
    """Lines of one table: a row for each shape and pass, a column for each contender."""
    names = list(dict.fromkeys(result.contender for result in results))
    names.sort(key=lambda name: not name.startswith(OURS))
    versions = {result.contender: result.version for result in results}
    heads = [f"{name} {versions[name]}" if name[0] != "i" else name for name in names]
    lines = ["| ms | pass | dtype | " + " | ".join(heads) + " | of the limit | peak MiB |"]
    lines.append("|---|---|---|" + "---:|" * (len(names) + 2))
    for key in dict.fromkeys(result.key for result in results):
        row = {result.contender: result for result in results if result.key == key}
        ours = row.get(OURS)
        cells = [_cell(row.get(name), ours) for name in names]
        facts = ours.facts if ours else {}
        share, peak = facts.get("share_of_limit"), facts.get("peak_bytes")
        cells.append("" if share is None else f"{share:.0%}")
        cells.append("" if not peak else f"{peak / 2**20:,.0f}")
        lines.append(f"| {key[1]} | {key[2]} | {key[3]} | " + " | ".join(cells) + " |")
    return lines


def _cell(result: Result | None, ours: Result | None) -> str:
    if result is None:
        return ""
    seconds = _seconds(result)
    text = f"{1e3 * seconds:.3g}" if seconds < 1 else f"{1e3 * seconds:,.0f}"
    if result.contender == OURS:
        return f"**{text}**"
    return f"{text} ({seconds / _seconds(ours):.1f}x)" if ours else text


def _seconds(result: Result) -> float:
    """Return the device's time where it was measured, else the wall's."""
    device_ms = result.facts.get("device_ms")
    return result.median_s if device_ms is None else device_ms / 1e3


def readme_table(run: Run) -> str:
    """Return the README's table: backbones S to g, throughput and memory against peers."""
    results = [result for result in run.results if result.kind == "backbone"]
    names = [name for name in dict.fromkeys(r.contender for r in results) if name[0] != "i"]
    lines = [f"{run.device}; images/s (ours over theirs), peak memory of the process:", ""]
    lines.append("| | pass | " + " | ".join(names) + " | ours, GiB | plain PyTorch, GiB |")
    lines.append("|---|---|" + "---:|" * (len(names) + 2))
    for key in dict.fromkeys(result.key for result in results):
        row = {result.contender: result for result in results if result.key == key}
        if OURS not in row:
            continue
        cells = []
        for name in names:
            if name not in row:
                cells.append("")
                continue
            rate = row[name].facts["images_per_s"]
            ratio = row[OURS].facts["images_per_s"] / rate
            cells.append(f"**{rate:.3g}**" if name == OURS else f"{rate:.3g} ({ratio:.1f}x)")
        for name in (OURS, "plain PyTorch"):
            peak = row[name].facts["peak_bytes"] if name in row else 0
            cells.append(f"{peak / 2**30:.2f}" if peak else "")
        if len({cell for cell in cells if cell}) > 2:
            lines.append(f"| {key[1]} | {key[2]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def compare(old: Run, new: Run) -> list[str]:
    """Return a line for each of our results that got slower by more than the noise.

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
        if was is None:
            continue
        noise = max(0.05, *(each.iqr_s / each.median_s for each in (was, result)))
        factor = _seconds(result) / _seconds(was)
        if factor > 1 + noise:
            what = " ".join((*result.key, result.contender))
            lines.append(
                f"{what}: {1e3 * _seconds(was):.3g} ms -> {1e3 * _seconds(result):.3g} ms, "
                f"{factor - 1:+.0%} (noise {noise:.0%})"
            )
    return lines


def write_readme(path: Path, readme: Path = _README) -> None:
    """Put the table of ``path`` between the README's marks, and the picture beside ``path``."""
    from figures import throughput

    run = load(path)
    text = readme.read_text()
    if any(text.count(mark) != 1 for mark in MARKS):
        raise BadFile(f"report: {readme} must have each of {' and '.join(MARKS)} once")
    before, rest = text.split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    _write(readme, before + MARKS[0] + "\n" + readme_table(run) + "\n" + MARKS[1] + after)
    throughput(run).savefig(path.with_suffix(".png"), dpi=110)


def _write(path: Path, text: str) -> None:
    """Replace a file as a whole: whoever reads it meanwhile sees the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    os.replace(part, path)


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
            folder = args.out / path.stem if len(args.files) > 1 else args.out
            pictures = figures.write_all(run, folder)
            links = "\n\n".join(f"![{name}]({name})" for name in pictures)
            _write(folder / "report.md", f"{tables(run)}\n{links}\n")
    except BadFile as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
