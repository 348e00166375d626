# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""docs/start.ipynb: its cells run one after another, here with one epoch."""

import json
from pathlib import Path
from typing import Any

import pytest

matplotlib = pytest.importorskip("matplotlib")
pytest.importorskip("torchvision")
pytest.importorskip("pycocotools")

TESTS = Path(__file__).parents[1]
NOTEBOOK = TESTS.parent / "docs" / "start.ipynb"


def cells() -> list[dict[str, Any]]:
    found = json.loads(NOTEBOOK.read_text())["cells"]
    return [cell for cell in found if cell["cell_type"] == "code"]


def test_cells_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shown: list[int] = []
    with matplotlib.rc_context():
        matplotlib.use("Agg")
        pyplot = pytest.importorskip("matplotlib.pyplot")
        monkeypatch.setattr(pyplot, "show", lambda: shown.extend(pyplot.get_fignums()))
        names: dict[str, Any] = {}
        for cell in cells():
            exec(compile("".join(cell["source"]), f"{NOTEBOOK.name}, {cell['id']}", "exec"), names)
            if cell["id"] == "settings":
                here = {"DATA": str(TESTS / "data" / "bccd"), "OUT": str(tmp_path / "out")}
                assert names.keys() >= here.keys() and (NOTEBOOK.parent / names["DATA"]).is_dir()
                names.update(here, EPOCHS=1)
        pyplot.close("all")
    width, height = names["photo"].size
    wanted = [(384, -(-height // stride), -(-width // stride)) for stride in (4, 8, 16, 32)]
    assert [each.shape[1:] for each in names["maps"]] == wanted
    assert names["results"]["photos"] == {"train": 75, "val": 25}
    assert len(set(shown)) == 3


def test_file_holds_no_results() -> None:
    assert [cell["outputs"] for cell in cells()] == [[]] * len(cells())
    assert {cell["execution_count"] for cell in cells()} == {None}
