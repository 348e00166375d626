# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A detector on the adapter learns blood cells from scratch, as make train-demo trains it."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("torchvision")
pytest.importorskip("pycocotools")

from shapes import all_found  # noqa: E402

from vitadapter_fast.commands import cli  # noqa: E402
from vitadapter_fast.commands.train.data import Split, load, read_folder  # noqa: E402
from vitadapter_fast.commands.train.loop import Processes, train  # noqa: E402
from vitadapter_fast.commands.train.scores import score  # noqa: E402
from vitadapter_fast.commands.train.settings import Settings  # noqa: E402
from vitadapter_fast.errors import CommandError  # noqa: E402

ROOT = Path(__file__).parents[2]
BCCD = ROOT / "tests" / "data" / "bccd"
EPOCHS, PER_EPOCH = 8, 18


@pytest.fixture(scope="module")
def splits() -> tuple[Split, Split]:
    return read_folder(BCCD)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a training of a fifth of the demo's length writes."""
    out = tmp_path_factory.mktemp("train_demo") / "out"
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", "")
    recipe = re.search(r"^train-demo:.*\n\t\$\(PYTHON\) -m vitadapter_fast (.+)$", makefile, re.M)
    assert recipe
    arguments = shlex.split(recipe[1])
    assert arguments[:3] == ["train", "--data", "tests/data/bccd"]
    others = ["--data", str(BCCD), "--out", str(out), "--epochs", str(EPOCHS)]
    assert cli.main([*arguments, *others]) == 0
    return out


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_loss_falls(trained: Path) -> None:
    total = [sum(each["losses"].values()) for each in log_of(trained) if "losses" in each]
    epochs = np.array(total).reshape(EPOCHS, PER_EPOCH).mean(axis=1)
    assert epochs[-1] < 0.6 * epochs[0]
    assert epochs[-1] < 1.05 * epochs.min()


def test_held_out_cells_are_found(trained: Path) -> None:
    first, *_, last = (each["scores"]["box"] for each in log_of(trained) if "scores" in each)
    assert first["ap50"] < 0.3
    assert last["ap50"] > 0.5
    assert all(value > 0.2 for value in last["ap50_of"].values())


def test_pictures_are_written(trained: Path) -> None:
    for name in ("loss.png", "detections.png"):
        with Image.open(trained / name) as picture:
            assert picture.width > 800
            assert np.array(picture.convert("L")).std() > 10


def test_training_follows_the_seed(splits: tuple[Split, Split], tmp_path: Path) -> None:
    few = Split(*(vars(splits[1]) | {"entries": splits[1].entries[:4]}).values())

    def losses(seed: int, run: str) -> list[dict[str, float]]:
        settings = Settings(model="tiny", size=(240, 320), epochs=1, batch=2, seed=seed)
        group = Processes(0, 1, torch.device("cpu"))
        return train((few, few), tmp_path / run, settings, group)[1].losses

    assert losses(0, "a") == losses(0, "b") != losses(1, "c")


def test_data_is_what_its_note_says(splits: tuple[Split, Split]) -> None:
    counts = []
    for split in splits:
        photos = [photo for (photo,) in load(split, [[index] for index in range(len(split))])]
        labels = torch.cat([photo.target["labels"] for photo in photos])
        assert list(split.classes.values()) == ["RBC", "WBC", "Platelets"]
        counts.append([len(split), *torch.bincount(labels)[1:].tolist()])
        for photo in photos:
            left, top, right, bottom = photo.target["boxes"].unbind(1)
            assert photo.image.shape == (3, 240, 320)
            assert left.min() >= 0 and right.max() <= 320 and (right - left).min() >= 2
            assert top.min() >= 0 and bottom.max() <= 240 and (bottom - top).min() >= 2
    assert counts == [[75, 876, 81, 74], [25, 278, 25, 25]]
    total = sum(path.stat().st_size for path in BCCD.rglob("*") if path.is_file())
    assert total < 3_000_000


def test_the_annotated_boxes_score_one(splits: tuple[Split, Split]) -> None:
    scores = score(splits[1], all_found(splits[1]))["box"]
    assert scores["ap"] == scores["ap50"] == pytest.approx(1.0)
    assert scores["ap50_of"] == pytest.approx({"RBC": 1.0, "WBC": 1.0, "Platelets": 1.0})


def test_settings_must_be_positive() -> None:
    with pytest.raises(CommandError, match="epochs must be positive, got 0"):
        Settings(epochs=0)
