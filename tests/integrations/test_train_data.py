# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Folders in COCO's format: which are taken, and what is told of those that are wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from photos import H, W
from PIL import Image

pytest.importorskip("torchvision")
pytest.importorskip("pycocotools")

from shapes import all_found, write_folder  # noqa: E402

from vitadapter_fast.commands import cli  # noqa: E402
from vitadapter_fast.commands.train import loop  # noqa: E402
from vitadapter_fast.commands.train.data import load, read_folder  # noqa: E402
from vitadapter_fast.commands.train.scores import score  # noqa: E402
from vitadapter_fast.commands.train.settings import Settings  # noqa: E402
from vitadapter_fast.errors import CommandError  # noqa: E402

Content = dict[str, Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "shapes", 2)


def change(folder: Path, edit: Callable[[Content], Any], names: str = "train valid") -> None:
    for name in names.split():
        file = folder / name / "_annotations.coco.json"
        content = json.loads(file.read_text())
        edit(content)
        file.write_text(json.dumps(content))


LAYOUTS = {
    "COCO": ("annotations/instances_train2017.json", "train2017"),
    "COCO with images/": ("annotations/instances_train.json", "images/train"),
    "COCO in one folder": ("annotations/instances_train.json", "images"),
    "COCO with valid": ("annotations/instances_train.json", "images/train"),
    "plain": ("train.json", "images"),
    "Roboflow": ("train/_annotations.coco.json", "train"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_is_taken(folder: Path, layout: str) -> None:
    names = LAYOUTS[layout]
    held_out_name = "valid" if layout.endswith("valid") else "val"
    for part, other in (("train", "train"), ("valid", held_out_name)):
        file, photos = (folder / "new" / name.replace("train", other) for name in names)
        photos.mkdir(parents=True, exist_ok=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        for photo in (folder / part).glob("*.png"):
            shutil.copy(photo, photos)
        shutil.copy(folder / part / "_annotations.coco.json", file)
    training, held_out = read_folder(folder / "new")
    assert training.file == folder / "new" / names[0]
    assert len(list(load(held_out, [[0], [1]]))) == 2


def first(list_name: str, /, **values: Any) -> Callable[[Content], Any]:
    return lambda content: content[list_name][0].update(values)


def repeated(name: str) -> Callable[[Content], Any]:
    return lambda content: content[name].append(content[name][0])


WRONG: dict[str, tuple[Callable[[Content], Any], str]] = {
    "no list": (lambda c: c.pop("images"), "wanted a list 'images', got NoneType"),
    "no photos": (lambda c: (c["images"].clear(), c["annotations"].clear()), "got 0 and 2"),
    "no categories": (lambda c: (c["categories"].clear(), c["annotations"].clear()), "got 2 and 0"),
    "no boxes": (lambda c: c["annotations"].clear(), "wanted boxes, got none"),
    "no name": (lambda c: c["images"][1].pop("file_name"), r"images\[1\]: wanted file_name of ty"),
    "text as id": (first("annotations", id="1"), r"annotations\[0\]: wanted id of type int, got '"),
    "photo twice": (repeated("images"), "images: id 0 is there twice"),
    "annotation twice": (repeated("annotations"), "annotations: id 1 is there twice"),
    "category twice": (repeated("categories"), "categories: id 1 is there twice"),
    "no such photo": (first("annotations", image_id=9), "annotation 1: image_id 9 is not in the"),
    "no such category": (first("annotations", category_id=9), "annotation 1: category_id 9 is not"),
    "photo missing": (first("images", file_name="x.png"), r"1 photos are missing, .*train.x\.png"),
    "other size": (first("images", width=99), "0.png: is 96 x 128 .* and 96 x 99 in"),
    "three numbers": (first("annotations", bbox=[1, 2, 3]), "annotation 1: bbox must be 4 numbers"),
    "no number": (first("annotations", bbox=[1, 2, 3, None]), "bbox must be 4 numbers, got"),
    "no area": (
        first("annotations", bbox=[5, 5, 0, 9]),
        "annotation 1: bbox .* has no area in .*0",
    ),
    "thin": (first("annotations", bbox=[5, 5, 1e-4, 9]), "annotation 1: bbox .* has no area in"),
    "half outside": (first("annotations", bbox=[-5, 5, 9, 9]), "bbox .* leaves .*0.png, 96 x 128"),
    "outside": (
        first("annotations", bbox=[500, 5, 9, 9]),
        "leaves .*leave out such boxes with --f",
    ),
    "no outline": (first("annotations", segmentation=[]), "annotation 1: segmentation must be pol"),
    "two points": (first("annotations", segmentation=[[1, 2, 3, 4]]), "at least 3 points"),
    "other mask": (
        first("annotations", segmentation={"size": [1, 1], "counts": "1"}),
        r"\[96, 128",
    ),
}


@pytest.mark.parametrize("which", WRONG)
def test_wrong_annotations_are_told(folder: Path, which: str) -> None:
    edit, told = WRONG[which]
    change(folder, edit, "train")
    with pytest.raises(CommandError, match=told) as error:
        read_folder(folder, has_masks=True)
    assert "train" in str(error.value)  # names the file


def test_wrong_files_are_told(folder: Path, tmp_path: Path) -> None:
    file = folder / "train" / "_annotations.coco.json"
    whole = file.read_text()
    for text, told in (("[", "no JSON"), ("[]", "wanted an object"), (b"\xff".hex(), "no JSON")):
        file.write_text(text)
        with pytest.raises(CommandError, match=f"_annotations.coco.json: {told}"):
            read_folder(folder)
    file.unlink()
    with pytest.raises(
        CommandError, match="one file of annotations for train, got none; it may be"
    ):
        read_folder(folder)
    file.write_text(whole)
    (folder / "train.json").write_text(whole)
    with pytest.raises(CommandError, match="for train, got .*coco.json, .*train.json; it may be"):
        read_folder(folder)
    shutil.rmtree(folder / "train")
    with pytest.raises(CommandError, match="train.json: wanted its photos in .*images: no folder"):
        read_folder(folder)


def test_mark_of_windows_is_passed_over(folder: Path) -> None:
    file = folder / "train" / "_annotations.coco.json"
    file.write_text(file.read_text(), encoding="utf-8-sig")
    assert len(read_folder(folder)[0]) == 2


def test_categories_must_agree(folder: Path) -> None:
    change(folder, first("categories", name="ring"), "valid")
    with pytest.raises(
        CommandError, match="valid.*: wanted the categories of .*'disk'.* got .*ring"
    ):
        read_folder(folder)


def test_unreadable_photos_are_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = folder / "train" / "1.png"
    photo.write_bytes(photo.read_bytes()[:2000])
    # Its head says the right size; the rest is read when its turn comes.
    arguments = ["--data", str(folder), "--model", "tiny", "--size", "96", "--batch", "2"]
    assert cli.main(["train", *arguments, "--out", str(folder / "run"), "--workers", "1"]) == 1
    assert capsys.readouterr().err.startswith(f"error: {photo}: cannot be read: ")
    photo.write_text("no photo")
    with pytest.raises(CommandError, match="1.png: not a photo in a known format"):
        read_folder(folder)


def test_turned_photo_has_its_upright_size(folder: Path) -> None:
    path = folder / "train" / "0.png"
    with Image.open(path) as photo:
        turned = photo.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    turned.save(path, exif=exif)
    ((read,),) = load(read_folder(folder)[0], [[0]])
    assert read.image.shape == (3, H, W)


def test_categories_with_gaps_keep_their_ids(folder: Path) -> None:
    ids = {1: 90, 2: 7}

    def renumber(content: Content) -> None:
        for each in content["categories"]:
            each["id"] = ids[each["id"]]
        for each in content["annotations"]:
            each["category_id"] = ids[each["category_id"]]
        content["categories"].append({"id": 0, "name": "disk"})  # as a group of categories is named

    change(folder, renumber)
    training, held_out = read_folder(folder)
    assert held_out.classes == {0: "disk (0)", 7: "square", 90: "disk (90)"}
    labels = {int(label) for (p,) in load(training, [[0], [1]]) for label in p.target["labels"]}
    assert labels <= {2, 3}
    rows = all_found(held_out)
    assert {row["category_id"] for row in rows} <= {7, 90}
    assert score(held_out, rows)["box"]["ap"] == pytest.approx(1.0)


def test_crowds_are_neither_learned_nor_counted(folder: Path) -> None:
    _, before = read_folder(folder)
    rows = all_found(before)
    change(folder, first("annotations", iscrowd=1, segmentation=None))
    _, held_out = read_folder(folder, has_masks=False)
    assert len(all_found(held_out)) == len(rows) - 1
    # Found or not, it changes nothing.
    scores = score(held_out, rows)["box"]
    assert scores["ap"] == score(held_out, all_found(held_out))["box"]["ap"] == pytest.approx(1.0)


def test_photos_without_boxes_are_learned(folder: Path, tmp_path: Path) -> None:
    def clear(content: Content) -> None:
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] == 1]

    change(folder, clear)
    settings = Settings(model="tiny", size=(96, 96), batch=1, epochs=1, has_masks=True)
    group = loop.Processes(0, 1, torch.device("cpu"))
    state, log = loop.train(read_folder(folder, has_masks=True), tmp_path / "run", settings, group)
    assert state.step == 2 and any(each["loss_box_reg"] == 0 for each in log.losses)


def test_boxes_are_cut_where_that_is_asked_for(folder: Path) -> None:
    def spoil(content: Content) -> None:
        content["annotations"][0]["bbox"] = [-5, 10, 25, 30]
        content["annotations"][1]["bbox"] = [5, 5, 0, 9]

    change(folder, spoil, "train")
    training, _ = read_folder(folder, fixes_boxes=True)
    ((photo,),) = load(training, [[0]])
    assert photo.target["boxes"].tolist() == [[0, 10, 20, 40]]


def test_boxes_may_pass_the_edge_by_rounding(folder: Path) -> None:
    change(folder, first("annotations", bbox=[-0.5, 10, 128.9, 30]), "train")
    ((photo,),) = load(read_folder(folder)[0], [[0]])
    assert photo.target["boxes"][0].tolist() == [0, 10, 128, 40]
