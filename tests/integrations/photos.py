# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A folder in, a data set of bright disks and squares on noise in COCO's format out."""

import json
from pathlib import Path
from typing import Any

import numpy as np

CLASSES = ("disk", "square")
H, W = 96, 128


def write_coco(folder: Path, num_images: int = 4) -> Path:
    """Write images and ``annotations.json`` into ``folder``; return the path of the latter."""
    from PIL import Image

    random = np.random.default_rng(0)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id in range(num_images):
        pixels = random.integers(0, 60, (H, W, 3))
        for column in range(2):
            size = int(random.integers(24, 40))
            left = int(random.integers(0, W // 2 - size)) + column * W // 2
            top = int(random.integers(0, H - size))
            is_disk = bool(random.integers(2))
            corners = polygon(left, top, size, is_disk)
            fill(pixels, left, top, size, is_disk)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": 1 + (not is_disk),
                    "bbox": [left, top, size, size],
                    "area": size * size,
                    "iscrowd": 0,
                    "segmentation": [corners],
                }
            )
        name = f"{image_id}.png"
        Image.fromarray(pixels.astype(np.uint8)).save(folder / name)
        images.append({"id": image_id, "file_name": name, "height": H, "width": W})
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, 1)]
    path = folder / "annotations.json"
    path.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    return path


def polygon(left: int, top: int, size: int, is_disk: bool) -> list[float]:
    """Outline of a shape as x, y, x, y, ..."""
    count, turn = (24, 0.0) if is_disk else (4, np.pi / 4)
    angles = np.arange(count) * 2 * np.pi / count + turn
    radius = size / 2 if is_disk else size / 2**0.5
    x = left + size / 2 + radius * np.cos(angles)
    y = top + size / 2 + radius * np.sin(angles)
    return np.stack([x, y], axis=1).ravel().round(2).tolist()


def fill(pixels: np.ndarray, left: int, top: int, size: int, is_disk: bool) -> None:
    """Paint a shape: disks are reddish, squares bluish."""
    y, x = np.mgrid[:size, :size] + 0.5 - size / 2
    inside = np.hypot(x, y) <= size / 2 if is_disk else np.ones((size, size), bool)
    region = pixels[top : top + size, left : left + size]
    region[inside] = (220, 60, 60) if is_disk else (60, 60, 220)
