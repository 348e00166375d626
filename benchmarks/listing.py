# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Measured rows in; a table to look at and a file to keep out."""

import json
import platform
from pathlib import Path
from typing import Any

from rich.table import Table


def device_name() -> str:
    """Return the processor's architecture and name as the system gives them."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{platform.machine()} {line.partition(':')[2].strip()}"
    return f"{platform.machine()} {platform.processor()}"


def table(title: str, rows: list[dict[str, Any]], device: str) -> Table:
    """Return the measurements with the ratio of each contestant's time to ours."""
    result = Table(title=f"{title}, {device}; ms (times ours)")
    names = list(dict.fromkeys(row["name"] for row in rows))
    for heading in ("shape", "threads", "pass", *names):
        result.add_column(heading, justify="left" if heading in ("shape", "pass") else "right")
    groups: dict[tuple[Any, ...], dict[str, float]] = {}
    for row in rows:
        key = (row["shape"], str(row["threads"]), row["pass"])
        groups.setdefault(key, {})[row["name"]] = row["time_ms"]
    for key, times in groups.items():
        cells = [
            f"{times[name]:.3g} ({times[name] / times[names[0]]:.1f}x)" if name in times else ""
            for name in names
        ]
        result.add_row(*key, *cells)
    return result


def write(path: Path, facts: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Write what was measured, and on what, as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(facts | {"rows": rows}, indent=1) + "\n")
