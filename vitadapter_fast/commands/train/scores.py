# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""What a detector finds in; rows of COCO's result files, and average precisions, out."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from .data import Split, Target

# Of the tables of pycocotools: IoU thresholds .5 and .75; all sizes; up to 100 detections.
_AT_50, _AT_75, _ALL_SIZES, _UP_TO_100 = 0, 5, 0, 2
_KINDS = {"box": "bbox", "mask": "segm"}

Row = dict[str, Any]
# By "box" and, of masks, "mask": "ap", "ap50" and "ap75" in [0, 1], and "ap50_of" each class.
Scores = dict[str, dict[str, Any]]


def as_coco(image_id: int, found: Target, category_ids: Sequence[int]) -> list[Row]:
    """Return the detections in one photo in the form of COCO's result files.

    Args:
        image_id: Of the photo.
        found: ``boxes``, ``labels`` and ``scores``; ``masks``, [N, 1, H, W] in [0, 1], as well.
        category_ids: Of the labels 1, 2, ...
    """
    sides = found["boxes"].clone()
    sides[:, 2:] -= sides[:, :2]
    rows: list[Row] = [
        {"image_id": image_id, "category_id": category_ids[label - 1], "bbox": box, "score": score}
        for label, box, score in zip(
            found["labels"].tolist(), sides.tolist(), found["scores"].tolist(), strict=True
        )
    ]
    for row, mask in zip(rows, found.get("masks", ()), strict=False):
        inside = np.asfortranarray((mask[0] >= 0.5).cpu().numpy().astype(np.uint8))
        lengths = coco_mask.encode(inside)
        row["segmentation"] = {**lengths, "counts": lengths["counts"].decode("ascii")}
    return rows


def score(split: Split, rows: list[Row]) -> Scores:
    """Compare detections, as of ``as_coco``, with what is annotated in the split."""
    return {kind: _score(split, rows, kind) for kind in ("box", "mask")[: 1 + split.has_masks]}


def _score(split: Split, rows: list[Row], kind: str) -> dict[str, Any]:
    names = list(split.classes.values())
    if not rows:
        return {"ap": 0.0, "ap50": 0.0, "ap75": 0.0, "ap50_of": dict.fromkeys(names, 0.0)}
    # It prints, and writes into what it is given.
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {**split.coco, "annotations": [dict(a) for a in split.coco["annotations"]]}
        truth.createIndex()
        found = [{key: row[key] for key in row if key != "bbox" or kind == "box"} for row in rows]
        evaluation = COCOeval(truth, truth.loadRes(found), _KINDS[kind])
        evaluation.evaluate()
        evaluation.accumulate()
    # [thresholds, recalls, classes, sizes, limits]; -1 where a class has no box.
    precision = evaluation.eval["precision"][:, :, :, _ALL_SIZES, _UP_TO_100]
    return {
        "ap": _mean(precision),
        "ap50": _mean(precision[_AT_50]),
        "ap75": _mean(precision[_AT_75]),
        "ap50_of": {name: _mean(precision[_AT_50, :, n]) for n, name in enumerate(names)},
    }


def _mean(precision: npt.NDArray[np.float64]) -> float:
    known = precision[precision > -1]
    return float(known.mean()) if known.size else 0.0
