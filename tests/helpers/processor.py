# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""What the system says of this processor."""

from pathlib import Path


def features() -> set[str]:
    """Return the flags and the vendor of an x86-64 processor on Linux; elsewhere nothing."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().split("\n\n")[0].splitlines() if cpuinfo.exists() else []
    told = dict(line.split(":", 1) for line in lines if ":" in line)
    told = {name.strip(): value for name, value in told.items()}
    if "flags" not in told:
        return set()
    return {*told["flags"].split(), told.get("vendor_id", "").strip()}
