# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Paths in, photos of one size per batch out."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

MIN_SIZE = 32
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")

# Beyond it the shorter side, kept at MIN_SIZE, makes photos of unbounded size.
_MAX_ASPECT = 50
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


class CommandError(Exception):
    """A request that cannot be met; the message is for the person at the terminal."""


@dataclass(frozen=True)
class Photo:
    """A photo as the model sees it.

    Attributes:
        name: Its name among the photos of this run.
        pixels: RGB, [H, W, 3], uint8.
    """

    name: str
    pixels: npt.NDArray[np.uint8]


def packaged_photo() -> AbstractContextManager[Path]:
    """Return a context in which the photo that comes with the library is a file."""
    return resources.as_file(resources.files(__package__) / "data" / "blood_cells.jpg")


def find_photos(paths: Iterable[Path]) -> list[Path]:
    """Return the photos: files as they are, of folders those with a photo's suffix, sorted.

    Raises:
        CommandError: A folder holds none or cannot be read.
    """
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        try:
            inside = sorted(path.iterdir())
        except OSError as error:
            raise CommandError(f"{path}: cannot be read: {error.strerror}") from error
        photos = [
            each
            for each in inside
            if each.suffix.lower() in SUFFIXES and not each.name.startswith(".") and each.is_file()
        ]
        if not photos:
            raise CommandError(f"{path}: no photos inside ({' '.join(SUFFIXES)})")
        found += photos
    return found


def unique_names(photos: Iterable[Path]) -> list[str]:
    """Return the stem of each path; a repeated one gets -2, -3 and so on."""
    names: list[str] = []
    # Compared without case, as some file systems do with the pictures.
    taken: set[str] = set()
    for path in photos:
        name, count = path.stem, 1
        while name.lower() in taken:
            count += 1
            name = f"{path.stem}-{count}"
        taken.add(name.lower())
        names.append(name)
    return names


def read_photo(path: Path, size: int) -> npt.NDArray[np.uint8]:
    """Read a photo upright and in RGB, and resize it without changing its proportions.

    Args:
        path: Any format and color mode that Pillow reads. Transparency is laid on white; of an
            animation, the first frame counts.
        size: Length of the longer side in pixels, at least 32. The shorter one does not go below
            32 either, so very narrow photos come out longer.

    Returns:
        [H, W, 3].

    Raises:
        CommandError: The file is missing, no photo, damaged or more than 50 times as long as wide.
    """
    try:
        with Image.open(path) as image:
            upright: Image.Image = ImageOps.exif_transpose(image)
            rgb = _to_rgb(upright)
    except FileNotFoundError:
        raise CommandError(f"{path}: no such file") from None
    except UnidentifiedImageError:
        raise CommandError(f"{path}: not a photo in a known format") from None
    # Pillow's decoders raise nearly anything on damaged files.
    except Exception as error:
        strerror = error.strerror if isinstance(error, OSError) else None
        reason = strerror or str(error).partition("\n")[0] or type(error).__name__
        raise CommandError(f"{path}: cannot be read: {reason}") from error
    shorter, longer = sorted(rgb.size)
    if longer > _MAX_ASPECT * shorter:
        raise CommandError(
            f"{path}: {rgb.width} x {rgb.height} is too narrow: one side is over {_MAX_ASPECT} "
            "times the other"
        )
    scale = max(size / longer, MIN_SIZE / shorter)
    width, height = (max(MIN_SIZE, round(side * scale)) for side in rgb.size)
    return np.asarray(rgb.resize((width, height), Image.Resampling.LANCZOS))


def batches(
    photos: Sequence[tuple[str, Path]], size: int, batch_size: int, failures: list[str]
) -> Iterator[list[Photo]]:
    """Read photos and yield them in batches of one size each.

    Args:
        photos: Name and path of each.
        size: See ``read_photo``.
        batch_size: Most photos of a batch.
        failures: Collects a message for each photo that cannot be read.
    """
    waiting: dict[tuple[int, ...], list[Photo]] = {}
    for name, path in photos:
        try:
            photo = Photo(name, read_photo(path, size))
        except CommandError as error:
            failures.append(str(error))
            continue
        group = waiting.setdefault(photo.pixels.shape, [])
        group.append(photo)
        if len(group) == batch_size:
            yield waiting.pop(photo.pixels.shape)
    yield from waiting.values()


def to_tensor(photos: Iterable[Photo]) -> Tensor:
    """Return photos of one size normalized as DINOv2 expects, [B, 3, H, W], float32."""
    pixels = torch.from_numpy(np.stack([photo.pixels for photo in photos]))
    image = pixels.permute(0, 3, 1, 2).float() / 255
    return (image - torch.tensor(_MEAN).view(3, 1, 1)) / torch.tensor(_STD).view(3, 1, 1)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        # Pillow would clip these at 255.
        values: npt.NDArray[Any] = np.nan_to_num(np.asarray(image, dtype=np.float64))
        peak = values.max(initial=0)
        if image.mode.startswith("I;16") or 255 < peak <= 65535:
            top = 65535.0
        elif image.mode == "F" and peak <= 1:
            top = 1.0
        else:
            top = max(255.0, peak)
        gray = np.clip(values / top * 255 + 0.5, 0, 255).astype(np.uint8)
        return Image.fromarray(gray).convert("RGB")
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        color = image.convert("RGBA")
        white = Image.new("RGBA", color.size, "white")
        return Image.alpha_composite(white, color).convert("RGB")
    return image.convert("RGB")
