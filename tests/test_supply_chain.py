# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The library reaches for no network unasked and writes only what it is asked to.

That no code in a checkpoint runs, see weights/test_read.py.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from checkpoint_cases import published_size, saved

pytest.importorskip("PIL.Image", reason="needs the [cli] extra")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder in which audited.py ran, and what it noted; all that is a user's lies in there."""
    home = tmp_path_factory.mktemp("home")
    saved(published_size("official_small"), home / "vit.pth")
    places = ("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR", "TORCH_HOME")
    environment = {**os.environ, **dict.fromkeys(places, str(home))}
    environment |= {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    program = Path(__file__).parent / "helpers" / "audited.py"
    done = subprocess.run(
        [sys.executable, program], cwd=home, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return home, json.loads(done.stderr.splitlines()[-1])


def test_nothing_connects_to_a_network(audited: tuple[Path, dict[str, Any]]) -> None:
    assert audited[1]["connected"] == []


def test_only_what_was_asked_for_is_written(audited: tuple[Path, dict[str, Any]]) -> None:
    home, noted = audited
    asked = {"vit_14to16.pth", "photo.png", "maps.safetensors"}
    # Files of compiled libraries pass by the audit, but not by a look at what there is.
    assert {each.name for each in home.iterdir()} == {"vit.pth", *asked}
    paths = {Path(path) for path in noted["changed"]}
    parts = {re.sub(r"^\.(.+)\.[0-9a-f]{8}\.part$", r"\1", path.name) for path in paths}
    assert parts == asked and {path.parent for path in paths} == {home}
