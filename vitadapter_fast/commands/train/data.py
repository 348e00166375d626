# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A folder of photos with boxes in COCO's format in; its checked parts, photo by photo, out."""

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ...errors import CommandError
from ..features.photos import open_photo, photo_hw

LAYOUTS = (
    "annotations/instances_NAME*.json with photos in NAME*/, images/NAME*/ or images/; "
    "NAME/_annotations.coco.json with photos beside it; or NAME.json with photos in images/"
)
# By how much boxes leave photos where sides were rounded.
_ROUNDING_PX = 1.0
# Of a box; in float32, a narrower one may have no area any more.
_MIN_SIDE_PX = 0.1

Target = dict[str, Tensor]


class Entry(NamedTuple):
    """A photo as the file lists it.

    Attributes:
        id: In the file.
        path: Of the photo.
        hw: Its height and width.
        annotations: Its boxes, without crowds.
    """

    id: int
    path: Path
    hw: tuple[int, int]
    annotations: list[dict[str, Any]]


class Photo(NamedTuple):
    """A photo with its boxes.

    Attributes:
        id: In the file.
        image: [3, H, W], uint8.
        target: ``boxes``, [N, 4] as (left, top, right, bottom) in pixels, ``labels``, [N], and
            where masks are learned ``masks``, [N, H, W], uint8.
    """

    id: int
    image: Tensor
    target: Target

    def to(self, device: torch.device) -> "Photo":
        """Return it on a device."""
        target = {name: each.to(device) for name, each in self.target.items()}
        return Photo(self.id, self.image.to(device), target)


@dataclass(frozen=True)
class Split(Dataset[Photo | CommandError]):
    """One part of a data set, checked.

    Attributes:
        file: The annotations.
        entries: Photos in the order of the file.
        classes: Names by the file's ids, in increasing order; label n is the n-th.
        coco: What pycocotools compares detections with.
        has_masks: Whether photos come with masks.
    """

    file: Path
    entries: list[Entry]
    classes: dict[int, str]
    coco: dict[str, Any]
    has_masks: bool

    def __len__(self) -> int:
        """Return the number of photos."""
        return len(self.entries)

    def __getitem__(self, index: int) -> Photo | CommandError:
        """Read a photo; an error is returned: workers would raise it without its text alone."""
        entry = self.entries[index]
        try:
            pixels = np.asarray(open_photo(entry.path))
        except CommandError as error:
            return error
        own = entry.annotations
        labels = {id: label for label, id in enumerate(self.classes, start=1)}
        boxes = torch.tensor([each["bbox"] for each in own], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        target = {
            "boxes": boxes,
            "labels": torch.tensor(
                [labels[each["category_id"]] for each in own], dtype=torch.int64
            ),
        }
        if self.has_masks:
            masks = [_mask(each["segmentation"], entry.hw) for each in own]
            none = torch.zeros(0, *entry.hw, dtype=torch.uint8)
            target["masks"] = torch.stack(masks) if masks else none
        return Photo(entry.id, torch.from_numpy(pixels.transpose(2, 0, 1).copy()), target)


def load(split: Split, batches: Sequence[list[int]], workers: int = 0) -> Iterator[list[Photo]]:
    """Read photos ahead, in batches of indices.

    Raises:
        CommandError: A photo cannot be read; says which.
    """
    for batch in DataLoader(split, batch_sampler=batches, num_workers=workers, collate_fn=list):
        for photo in batch:
            if isinstance(photo, CommandError):
                raise photo
        yield batch


def read_folder(
    folder: Path, *, has_masks: bool = False, fixes_boxes: bool = False
) -> tuple[Split, Split]:
    """Find and check what there is to train on and what is held out.

    Args:
        folder: As in ``LAYOUTS``, with train and val (or valid) for NAME.
        has_masks: Whether annotations must have a segmentation.
        fixes_boxes: Whether boxes are cut at the photo's edge, and left out where nothing is left.

    Raises:
        CommandError: A file is missing or not what it should be; says which.
    """
    if not os.path.isdir(folder):
        raise CommandError(f"{folder}: no such folder")
    found = [_find(folder, names) for names in (["train"], ["val", "valid"])]
    training, held_out = (
        read_split(*pair, has_masks=has_masks, fixes_boxes=fixes_boxes) for pair in found
    )
    if training.classes != held_out.classes:
        raise CommandError(
            f"{held_out.file}: wanted the categories of {training.file}, {training.classes}, got "
            f"{held_out.classes}"
        )
    return training, held_out


def read_split(
    file: Path, folder: Path, *, has_masks: bool = False, fixes_boxes: bool = False
) -> Split:
    """Read and check annotations, and that their photos are there and of the size they say.

    Args:
        file: In COCO's format.
        folder: Of the photos.
        has_masks: As for ``read_folder``.
        fixes_boxes: As for ``read_folder``.

    Raises:
        CommandError: Something is missing or not what it should be; says what.
    """
    try:
        # Windows' programs begin a file with a mark.
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise CommandError(f"{file}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise CommandError(f"{file}: no JSON: {error}") from error
    if not isinstance(content, dict):
        raise CommandError(f"{file}: wanted an object with images, annotations and categories")
    images = _by_id(file, content, "images", {"file_name": str, "width": int, "height": int})
    categories = _by_id(file, content, "categories", {"name": str})
    wanted = {"image_id": int, "category_id": int, "bbox": list}
    annotations = _by_id(file, content, "annotations", wanted)
    if not images or not categories:
        raise CommandError(
            f"{file}: wanted photos and categories, got {len(images)} and {len(categories)}"
        )
    names = [each["name"] for each in categories.values()]
    classes = {
        id: each["name"] if names.count(each["name"]) == 1 else f"{each['name']} ({id})"
        for id, each in sorted(categories.items())
    }
    entries = {
        id: Entry(id, folder / each["file_name"], (each["height"], each["width"]), [])
        for id, each in images.items()
    }
    _check_photos(file, list(entries.values()))
    kept: list[dict[str, Any]] = []
    for id, each in annotations.items():
        where = f"{file}: annotation {id}"
        for name, known in (("image_id", images), ("category_id", categories)):
            if each[name] not in known:
                raise CommandError(f"{where}: {name} {each[name]} is not in the file")
        entry = entries[each["image_id"]]
        is_crowd = bool(each.get("iscrowd", 0))
        box = _checked_box(where, each["bbox"], entry, fixes_boxes)
        if box is None:
            continue
        if has_masks:
            _check_outline(where, each.get("segmentation"), entry.hw)
        area = each.get("area")
        kept.append(
            {
                "id": len(kept) + 1,  # pycocotools takes a match with 0 for none
                "image_id": entry.id,
                "category_id": each["category_id"],
                "bbox": box,
                "area": area if type(area) in (int, float) else box[2] * box[3],
                "iscrowd": int(is_crowd),
                **({"segmentation": each["segmentation"]} if has_masks else {}),
            }
        )
        if not is_crowd:
            entry.annotations.append(kept[-1])
    if not kept:
        raise CommandError(f"{file}: wanted boxes, got none")
    coco = {
        "images": [{"id": e.id, "height": e.hw[0], "width": e.hw[1]} for e in entries.values()],
        "annotations": kept,
        "categories": [{"id": id, "name": name} for id, name in classes.items()],
    }
    return Split(file, list(entries.values()), classes, coco, has_masks)


def vary(photo: Photo, flip: str) -> Photo:
    """Mirror at random, and change brightness and contrast by up to a fifth.

    Args:
        photo: As read; its image may be on any device.
        flip: One of ``FLIPS``.

    Returns:
        It, with an image of float32 in [0, 1].
    """
    image, target = photo.image.float() / 255, dict(photo.target)
    H, W = image.shape[1:]
    draws = torch.rand(4, dtype=torch.float32).tolist()
    axes = {"horizontal": [2], "both": [2, 1], "none": []}[flip]
    for axis, draw in zip(axes, draws, strict=False):
        if draw < 0.5:
            continue
        image = image.flip(axis)
        near, side = (0, W) if axis == 2 else (1, H)
        boxes = target["boxes"].clone()
        boxes[:, [near, near + 2]] = side - boxes[:, [near + 2, near]]
        target["boxes"] = boxes
        if "masks" in target:
            target["masks"] = target["masks"].flip(axis)
    contrast, brightness = 0.8 + 0.4 * draws[2], 0.8 + 0.4 * draws[3]
    mean = image.mean()
    image = ((image - mean) * contrast + mean * brightness).clamp(0, 1)
    return Photo(photo.id, image, target)


def _find(folder: Path, names: list[str]) -> tuple[Path, Path]:
    """Return the annotations of a part of a data set, and the folder of its photos."""
    known: dict[Path, list[Path]] = {}
    for name in names:
        for file in sorted((folder / "annotations").glob(f"instances_{name}*.json")):
            part = file.stem.removeprefix("instances_")
            known[file] = [folder / part, folder / "images" / part, folder / "images"]
        known[folder / name / "_annotations.coco.json"] = [folder / name]
        known[folder / f"{name}.json"] = [folder / "images"]
    found = [file for file in known if os.path.isfile(file)]
    if len(found) != 1:
        raise CommandError(
            f"{folder}: wanted one file of annotations for {names[0]}, got "
            f"{', '.join(map(str, found)) or 'none'}; it may be "
            f"{LAYOUTS.replace('NAME', names[0])}"
        )
    (file,) = found
    folders = known[file]
    for each in folders:
        if os.path.isdir(each):
            return file, each
    raise CommandError(f"{file}: wanted its photos in {' or '.join(map(str, folders))}: no folder")


def _by_id(
    file: Path, content: dict[str, Any], name: str, wanted: dict[str, type]
) -> dict[int, dict[str, Any]]:
    """Return the entries of a list by their ids, if all have what is wanted."""
    entries = content.get(name)
    if not isinstance(entries, list):
        raise CommandError(f"{file}: wanted a list {name!r}, got {type(entries).__name__}")
    by_id: dict[int, dict[str, Any]] = {}
    for place, entry in enumerate(entries):
        for key, kind in {"id": int, **wanted}.items():
            value = entry.get(key) if isinstance(entry, dict) else None
            if type(value) is not kind:
                raise CommandError(
                    f"{file}: {name}[{place}]: wanted {key} of type {kind.__name__}, got {value!r}"
                )
        if entry["id"] in by_id:
            raise CommandError(f"{file}: {name}: id {entry['id']} is there twice")
        by_id[entry["id"]] = entry
    return by_id


def _check_photos(file: Path, entries: list[Entry]) -> None:
    missing = [entry.path for entry in entries if not os.path.isfile(entry.path)]
    if missing:
        raise CommandError(f"{file}: {len(missing)} photos are missing, the first is {missing[0]}")
    for entry in entries:
        hw = photo_hw(entry.path)
        if hw != entry.hw:
            raise CommandError(
                f"{entry.path}: is {hw[0]} x {hw[1]} (height x width) when upright, and "
                f"{entry.hw[0]} x {entry.hw[1]} in {file}"
            )


def _checked_box(where: str, box: list[Any], entry: Entry, fixes_boxes: bool) -> list[float] | None:
    """Return (left, top, width, height) inside the photo; None for one that is left out."""
    is_number = [type(each) in (int, float) and math.isfinite(each) for each in box]
    if len(box) != 4 or not all(is_number):
        raise CommandError(f"{where}: bbox must be 4 numbers, got {box}")
    H, W = entry.hw
    left, top = max(box[0], 0), max(box[1], 0)
    right, bottom = min(box[0] + box[2], W), min(box[1] + box[3], H)
    cut = max(left - box[0], top - box[1], box[0] + box[2] - right, box[1] + box[3] - bottom)
    has_area = min(right - left, bottom - top) >= _MIN_SIDE_PX
    if not fixes_boxes and (cut > _ROUNDING_PX or not has_area):
        raise CommandError(
            f"{where}: bbox {box} {'leaves' if cut > _ROUNDING_PX else 'has no area in'} "
            f"{entry.path}, {H} x {W}; correct it, or cut and leave out such boxes with --fix-boxes"
        )
    return [left, top, right - left, bottom - top] if has_area else None


def _check_outline(where: str, outline: Any, hw: tuple[int, int]) -> None:
    if isinstance(outline, dict):
        is_right = outline.get("size") == list(hw) and isinstance(
            outline.get("counts"), (str, list)
        )
    else:
        is_right = isinstance(outline, list) and len(outline) > 0 and all(map(_is_polygon, outline))
    if not is_right:
        raise CommandError(
            f"{where}: segmentation must be polygons of at least 3 points, or run lengths (counts, "
            f"and size {list(hw)}), got {str(outline)[:60]}; or train without --masks"
        )


def _is_polygon(outline: Any) -> bool:
    is_long = isinstance(outline, list) and len(outline) >= 6 and len(outline) % 2 == 0
    return is_long and all(type(each) in (int, float) for each in outline)


def _mask(outline: Any, hw: tuple[int, int]) -> Tensor:
    """Return polygons or run lengths of either form as a mask, [H, W], uint8."""
    if isinstance(outline, dict) and not isinstance(outline["counts"], list):
        lengths = outline
    else:
        lengths = coco_mask.frPyObjects(outline, *hw)
    merged = coco_mask.merge(lengths) if isinstance(lengths, list) else lengths
    return torch.from_numpy(coco_mask.decode(merged))
