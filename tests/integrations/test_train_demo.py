# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A detector on the adapter learns blood cells from scratch."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("torchvision")
pytest.importorskip("pycocotools")

from vitadapter_fast.errors import CommandError  # noqa: E402
from vitadapter_fast.integrations.train_demo import (  # noqa: E402
    Settings,
    build_detector,
    main,
    train,
)
from vitadapter_fast.integrations.train_demo_data import (  # noqa: E402
    Photo,
    Split,
    batches,
    detections_as_coco,
    read_split,
    score,
)

BCCD = Path(__file__).parents[1] / "data" / "bccd"
EPOCHS = 8


@pytest.fixture(scope="module")
def held_out() -> Split:
    return read_split(BCCD, "val")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a training of a fifth of the demo's length writes."""
    out = tmp_path_factory.mktemp("train_demo") / "out"
    assert main(["--data", str(BCCD), "--out", str(out), "--epochs", str(EPOCHS)]) == 0
    return out


def results_of(folder: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return results


def test_loss_falls(trained: Path) -> None:
    total = [sum(losses.values()) for losses in results_of(trained)["losses"]]
    epochs = np.array(total).reshape(EPOCHS, -1).mean(axis=1)
    assert epochs[-1] < 0.6 * epochs[0]
    assert epochs[-1] < 1.05 * epochs.min()


def test_held_out_cells_are_found(trained: Path) -> None:
    results = results_of(trained)
    assert results["untrained"]["ap50"] < 0.05
    assert results["trained"]["ap50"] > 0.5
    assert all(value > 0.2 for value in results["trained"]["ap50_of"].values())


def test_pictures_are_written(trained: Path) -> None:
    names = {path.name for path in trained.iterdir()}
    assert names == {"results.json", "loss.png", "detections.png", "detector.safetensors"}
    for name in ("loss.png", "detections.png"):
        with Image.open(trained / name) as picture:
            assert picture.width > 800
            assert np.array(picture.convert("L")).std() > 10


def test_training_follows_the_seed(held_out: Split) -> None:
    def losses(seed: int) -> list[dict[str, float]]:
        detector = build_detector(3, seed)
        settings = Settings(epochs=1, batch=2, seed=seed)
        return [step.losses for step in train(detector, held_out.photos[:4], settings)]

    assert losses(0) == losses(0) != losses(1)


def test_data_is_what_its_note_says() -> None:
    counts = {}
    for name in ("train", "val"):
        split = read_split(BCCD, name)
        labels = torch.cat([photo.target["labels"] for photo in split.photos])
        assert list(split.classes.values()) == ["RBC", "WBC", "Platelets"]
        counts[name] = [len(split.photos), *torch.bincount(labels)[1:].tolist()]
        for photo in split.photos:
            left, top, right, bottom = photo.target["boxes"].unbind(1)
            assert photo.image.shape == (3, 240, 320)
            assert left.min() >= 0 and right.max() <= 320 and (right - left).min() >= 2
            assert top.min() >= 0 and bottom.max() <= 240 and (bottom - top).min() >= 2
    assert counts == {"train": [75, 876, 81, 74], "val": [25, 278, 25, 25]}
    total = sum(path.stat().st_size for path in BCCD.rglob("*") if path.is_file())
    assert total < 3_000_000


def test_mirrored_boxes_stay_on_their_cells() -> None:
    image = torch.zeros(3, 40, 60)
    image[:, 5:15, 10:30] = 1.0
    target = {"boxes": torch.tensor([[10.0, 5, 30, 15]]), "labels": torch.tensor([1])}
    photos = [Photo("square", 1, image, target)] * 16
    seen = set()
    for (photo,) in batches(photos, 1, torch.Generator().manual_seed(0)):
        left, top, right, bottom = (int(edge) for edge in photo.target["boxes"][0])
        inside = photo.image[:, top:bottom, left:right]
        assert inside.min() > photo.image.mean() and inside.numel() == 3 * 200
        seen.add((left, top))
    assert seen == {(10, 5), (30, 5), (10, 25), (30, 25)}


def test_the_annotated_boxes_score_one(held_out: Split) -> None:
    rows = []
    for photo in held_out.photos:
        found = {**photo.target, "scores": torch.ones(len(photo.target["labels"]))}
        rows += detections_as_coco(photo, found)
    scores = score(held_out, rows)
    assert scores.ap == scores.ap50 == pytest.approx(1.0)
    assert scores.ap50_of == pytest.approx({"RBC": 1.0, "WBC": 1.0, "Platelets": 1.0})


def test_no_detections_score_zero(held_out: Split) -> None:
    assert score(held_out, []) == (0.0, 0.0, {"RBC": 0.0, "WBC": 0.0, "Platelets": 0.0})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "train.json: cannot be read: No such file"),
        ("[", "train.json: not a COCO file"),
        ('{"images": []}', "not a COCO file of boxes: KeyError"),
        ('{"images": [], "annotations": [], "categories": []}', "wanted photos, .* got 0 photos"),
    ],
)
def test_errors_name_the_file(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "train.json").write_text(text)
    with pytest.raises(CommandError, match=message):
        read_split(tmp_path, "train")


def test_a_missing_folder_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 1
    assert "none/train.json: cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_too_few_photos_are_refused(held_out: Split) -> None:
    with pytest.raises(CommandError, match="one batch of 4 photos, got 3"):
        train(build_detector(3), held_out.photos[:3], Settings(epochs=1))


def test_settings_must_be_positive() -> None:
    with pytest.raises(CommandError, match="epochs must be positive, got 0"):
        Settings(epochs=0)
