# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Rows in as they come; out a file that is whole after each of them, whatever ends the run.

Of the form that pytest-benchmark writes at the end, which it does not reach when interrupted.
"""

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent)]

NO_TIME = "no time left"
_log = logging.getLogger("vitadapter_fast.benchmarks")
_FOLDER = Path(__file__).parent / "results"


def write_whole(path: Path, text: str) -> None:
    """Replace a file as a whole: a reader sees the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    os.replace(part, path)


class Results:
    """What a run found so far.

    Attributes:
        machine: Where it is measured.
        rows: As pytest-benchmark has them.
        not_timed: What was refused or could not be run, with its reason.
    """

    def __init__(self, path: Path | None, machine: dict[str, Any]) -> None:
        """Start a file, if there is a path; the first row makes it."""
        self._path, self.machine = path, machine
        self._commit = fact("the commit", _commit)
        self.rows: list[dict[str, Any]] = []
        self.not_timed: list[dict[str, str]] = []

    def add(self, name: str, stats: dict[str, Any], facts: dict[str, Any]) -> None:
        """Keep a timed row."""
        self.rows.append({"name": name, "stats": stats, "extra_info": facts})
        self._write(is_complete=False)

    def refuse(self, row: Any, reason: str) -> None:
        """Keep why a row has no time."""
        facts = {"kind": row.spec.kind, "shape": row.shape, "passes": row.passes}
        facts |= {"contender": row.spec.contender, "dtype": row.spec.dtype, "reason": reason}
        self.not_timed.append(facts)
        self._write(is_complete=False)

    def finish(self) -> None:
        """Say in the file that every row was tried, unless there was no time for one."""
        if self.rows or self.not_timed:
            was_short = any(each["reason"] == NO_TIME for each in self.not_timed)
            self._write(is_complete=not was_short)

    def _write(self, *, is_complete: bool) -> None:
        if self._path is None:
            return
        document = {
            "machine_info": self.machine,
            "commit_info": {"id": self._commit, "project": "vitadapter_fast"},
            "is_complete": is_complete,
            "not_timed": self.not_timed,
            "benchmarks": self.rows,
        }
        write_whole(self._path, json.dumps(document, indent=1) + "\n")


def fact(what: str, ask: Callable[[], Any]) -> Any:
    """Return ``ask()``, or None with a warning: no fact about a machine is worth a run."""
    try:
        return ask()
    except Exception as error:
        _log.warning("unknown: %s (%s: %s)", what, type(error).__name__, error)
        return None


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def path_of(device: str) -> Path:
    """Return where the results of a device of this name are kept."""
    return _FOLDER / (re.sub(r"[^a-z0-9]+", "_", device.lower()).strip("_") + ".json")


def main() -> None:
    """Print where the results of this machine's GPU are kept."""
    from limits import device_name

    sys.stdout.write(f"{path_of(device_name('cuda'))}\n")


if __name__ == "__main__":
    main()
