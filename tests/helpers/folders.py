# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""What lies in a folder."""

from pathlib import Path


def names_in(folder: Path) -> list[str]:
    """The names, sorted."""
    return sorted(path.name for path in folder.iterdir())
