# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A folder of photos with boxes in COCO's format in; training batches and scores of detections out.

The folder has ``images/``, ``train.json`` and ``val.json``.
"""

import contextlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from ..errors import CommandError

# Of the tables of pycocotools: the first IoU threshold is .5; all sizes; up to 100 detections.
_AT_50, _ALL_SIZES, _UP_TO_100 = 0, 0, 2

Target = dict[str, Tensor]


class Photo(NamedTuple):
    """A photo with its boxes.

    Attributes:
        name: Of the file.
        id: In COCO's file.
        image: [3, H, W], float32 in [0, 1].
        target: ``boxes``, [N, 4] as (left, top, right, bottom) in pixels, and ``labels``, [N].
    """

    name: str
    id: int
    image: Tensor
    target: Target


@dataclass(frozen=True)
class Split:
    """One part of a data set, all in memory.

    Attributes:
        photos: In the order of the file.
        classes: Names by id, which begin at 1.
        coco: The contents of the file.
    """

    photos: list[Photo]
    classes: dict[int, str]
    coco: dict[str, Any]


class Scores(NamedTuple):
    """Average precisions in [0, 1], as COCO counts them.

    Attributes:
        ap: Mean over IoU thresholds .5 to .95 and classes.
        ap50: At IoU .5, mean over classes.
        ap50_of: At IoU .5, by name of the class.
    """

    ap: float
    ap50: float
    ap50_of: dict[str, float]


def read_split(folder: Path, name: str) -> Split:
    """Read ``folder/name.json`` and its photos.

    Args:
        folder: Of the data set.
        name: "train" or "val".

    Raises:
        CommandError: A file is missing or not what it should be; says which.
    """
    file = folder / f"{name}.json"
    try:
        coco = json.loads(file.read_text(encoding="utf-8"))
        classes = {int(each["id"]): str(each["name"]) for each in coco["categories"]}
        photos = [_read_photo(folder, each, coco["annotations"]) for each in coco["images"]]
    except OSError as error:
        what = error.filename if error.filename is not None else file
        raise CommandError(f"{what}: cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CommandError(f"{file}: not a COCO file of boxes: {error!r}") from error
    if not photos or min(classes, default=0) != 1 or max(classes) != len(classes):
        raise CommandError(
            f"{file}: wanted photos, and classes whose ids are 1, 2, ..., got {len(photos)} photos "
            f"and classes {sorted(classes)}"
        )
    return Split(photos, classes, coco)


def batches(photos: Sequence[Photo], size: int, random: torch.Generator) -> Iterator[list[Photo]]:
    """Give every photo once, shuffled, mirrored and recolored, in batches of ``size``.

    What is left over at the end makes no batch.
    """
    order = torch.randperm(len(photos), generator=random).tolist()
    for start in range(0, len(order) - size + 1, size):
        yield [_varied(photos[index], random) for index in order[start : start + size]]


def detections_as_coco(photo: Photo, found: Target) -> list[dict[str, Any]]:
    """Return the detections of one photo in the form of COCO's result files."""
    sides = found["boxes"].clone()
    sides[:, 2:] -= sides[:, :2]
    rows = zip(found["labels"].tolist(), sides.tolist(), found["scores"].tolist(), strict=True)
    return [
        {"image_id": photo.id, "category_id": label, "bbox": box, "score": score}
        for label, box, score in rows
    ]


def score(split: Split, detections: list[dict[str, Any]]) -> Scores:
    """Compare detections, as for ``detections_as_coco``, with the boxes of the split."""
    if not detections:
        return Scores(0.0, 0.0, dict.fromkeys(split.classes.values(), 0.0))
    # It prints.
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = split.coco
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(detections), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    # [thresholds, recalls, classes, sizes, limits]; -1 where a class has no box.
    precision = evaluation.eval["precision"][:, :, :, _ALL_SIZES, _UP_TO_100]
    of_class = {
        split.classes[id]: _mean(precision[_AT_50, :, index])
        for index, id in enumerate(evaluation.params.catIds)
    }
    return Scores(_mean(precision), _mean(precision[_AT_50]), of_class)


def _mean(precision: "np.typing.NDArray[np.float64]") -> float:
    known = precision[precision > -1]
    return float(known.mean()) if known.size else 0.0


def _read_photo(folder: Path, image: dict[str, Any], annotations: list[dict[str, Any]]) -> Photo:
    path = folder / "images" / image["file_name"]
    try:
        with Image.open(path) as opened:
            pixels = np.array(opened.convert("RGB"))
    except UnidentifiedImageError as error:
        raise CommandError(f"{path}: not a photo") from error
    own = [each for each in annotations if each["image_id"] == image["id"]]
    boxes = torch.tensor([each["bbox"] for each in own], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    labels = torch.tensor([each["category_id"] for each in own], dtype=torch.int64)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    return Photo(path.name, image["id"], tensor, {"boxes": boxes, "labels": labels})


def _varied(photo: Photo, random: torch.Generator) -> Photo:
    """Mirror at random, and change brightness and contrast by up to a fifth."""
    image, boxes = photo.image, photo.target["boxes"].clone()
    draws = torch.rand(4, generator=random).tolist()
    H, W = image.shape[1:]
    if draws[0] < 0.5:
        image = image.flip(2)
        boxes[:, [0, 2]] = W - boxes[:, [2, 0]]
    if draws[1] < 0.5:
        image = image.flip(1)
        boxes[:, [1, 3]] = H - boxes[:, [3, 1]]
    contrast, brightness = 0.8 + 0.4 * draws[2], 0.8 + 0.4 * draws[3]
    mean = image.mean()
    image = ((image - mean) * contrast + mean * brightness).clamp(0, 1)
    return photo._replace(image=image, target={**photo.target, "boxes": boxes})
