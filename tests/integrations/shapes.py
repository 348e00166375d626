# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""What the tests of training share: a folder of drawn photos, and detections without a fault."""

from pathlib import Path
from typing import Any

import torch
from photos import write_coco

from vitadapter_fast.commands.train.data import Split, load
from vitadapter_fast.commands.train.scores import as_coco


def write_folder(folder: Path, photos: int, held_out: int = 2) -> Path:
    """Write disks and squares to learn and held out, as Roboflow lays them out."""
    for name, count in (("train", photos), ("valid", held_out)):
        (folder / name).mkdir(parents=True)
        write_coco(folder / name, count).rename(folder / name / "_annotations.coco.json")
    return folder


def all_found(split: Split) -> list[dict[str, Any]]:
    """Return what is annotated, as if it had been detected."""
    rows = []
    for (photo,) in load(split, [[index] for index in range(len(split))]):
        found = {**photo.target, "scores": torch.ones(len(photo.target["labels"]))}
        if "masks" in found:
            found["masks"] = found["masks"][:, None].float()
        rows += as_coco(photo.id, found, list(split.classes))
    return rows
