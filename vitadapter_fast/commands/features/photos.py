# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Paths in, photos of one size per batch out."""

import functools
import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError
from torch import Tensor

from ...errors import CommandError
from ...images import MEAN, MIN_SIZE, STD
from .gray import to_gray, value_range

# Formats that Pillow opens, but other programs have to draw or decode.
_NO_PIXELS = ("EPS", "MPEG")

# Beyond it the shorter side, kept at MIN_SIZE, makes photos of unbounded size.
_MAX_ASPECT = 50

# Orientations of EXIF in which width and height change places.
_TURNED = range(5, 9)

_log = logging.getLogger("vitadapter_fast")


@dataclass(frozen=True)
class Photo:
    """A photo as the model sees it.

    Attributes:
        name: Its name among the photos of this run; any bytes that a file name may have.
        pixels: RGB, [H, W, 3], uint8.
    """

    name: str
    pixels: npt.NDArray[np.uint8]


def packaged_photo() -> AbstractContextManager[Path]:
    """Return a context in which the photo that comes with the library is a file."""
    return resources.as_file(resources.files("vitadapter_fast") / "data" / "blood_cells.jpg")


@functools.cache
def photo_suffixes() -> frozenset[str]:
    """Return the suffixes of all formats that the installed Pillow reads, in lower case."""
    formats = Image.registered_extensions()  # initializes Image.OPEN
    return frozenset(
        suffix
        for suffix, name in formats.items()
        if name in Image.OPEN and name not in _NO_PIXELS and not _is_stub(name)
    )


def _is_stub(name: str) -> bool:
    """Return whether Pillow knows a format only by name, such as HDF5."""
    factory = Image.OPEN[name][0]
    return isinstance(factory, type) and issubclass(factory, ImageFile.StubImageFile)


def find_photos(paths: Iterable[Path], failures: list[str]) -> list[Path]:
    """Return the photos: files as they are, of folders those with a photo's suffix, sorted.

    Args:
        paths: Files and folders.
        failures: Collects a message for each folder that holds none or cannot be read.
    """
    found: list[Path] = []
    for path in paths:
        # Not Path.is_dir, which raises where a name is too long or a folder is closed.
        if not os.path.isdir(path):
            found.append(path)
            continue
        try:
            inside = sorted(path.iterdir())
        except OSError as error:
            failures.append(f"{path}: cannot be read: {error.strerror}")
            continue
        photos = [
            each
            for each in inside
            if each.suffix.lower() in photo_suffixes()
            and not each.name.startswith(".")
            and os.path.isfile(each)
        ]
        if not photos:
            failures.append(f"{path}: no photos inside; wanted .jpg, .png or others of Pillow's")
        found += photos
    return found


def printable(name: str) -> str:
    r"""Return a name as text that every file format takes: other bytes as ``\udcff``."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def unique_names(photos: Iterable[Path]) -> list[str]:
    """Return the stem of each path; a repeated one gets -2, -3 and so on."""
    names: list[str] = []
    # Compared without case, as some file systems do with the pictures; and as text, which names
    # the maps.
    taken: set[str] = set()
    for path in photos:
        name, count = path.stem, 1
        while printable(name).lower() in taken:
            count += 1
            name = f"{path.stem}-{count}"
        taken.add(printable(name).lower())
        names.append(name)
    return names


def read_photo(
    path: Path, size_hw: tuple[int, int], declared_range: tuple[float, float] | None = None
) -> npt.NDArray[np.uint8]:
    """Read a photo upright and in RGB, and resize it without changing its proportions.

    Args:
        path: Any format and color mode that Pillow reads. Transparency is laid on white; of an
            animation, the first frame counts. Of a gray picture of more than 8 bits, which values
            are black and white is told at INFO.
        size_hw: Height and width that it has to fit into, of which it fills one; at least 32. Its
            shorter side does not go below 32 either, so very narrow photos come out longer.
        declared_range: Values that are black and white in gray pictures of more than 8 bits; None
            takes those of ``gray``.

    Returns:
        [H, W, 3].

    Raises:
        CommandError: The file is missing, no photo, damaged, too large for Pillow or more than 50
            times as long as wide.
    """
    rgb = open_photo(path, declared_range)
    shorter, longer = sorted(rgb.size)
    if longer > _MAX_ASPECT * shorter:
        raise CommandError(
            f"{path}: {rgb.height} x {rgb.width} is too narrow: one side is over {_MAX_ASPECT} "
            "times the other"
        )
    scale = max(min(size_hw[0] / rgb.height, size_hw[1] / rgb.width), MIN_SIZE / shorter)
    width, height = (max(MIN_SIZE, round(side * scale)) for side in rgb.size)
    return np.asarray(rgb.resize((width, height), Image.Resampling.LANCZOS))


def batches(
    photos: Sequence[tuple[str, Path]],
    size_hw: tuple[int, int],
    batch_size: int,
    failures: list[str],
    declared_range: tuple[float, float] | None = None,
) -> Iterator[list[Photo]]:
    """Read photos and yield them in batches of one size each.

    Args:
        photos: Name and path of each.
        size_hw: See ``read_photo``.
        batch_size: Most photos of a batch.
        failures: Collects a message for each photo that cannot be read.
        declared_range: See ``read_photo``.
    """
    waiting: dict[tuple[int, ...], list[Photo]] = {}
    for name, path in photos:
        try:
            photo = Photo(name, read_photo(path, size_hw, declared_range))
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
    mean, std = (torch.tensor(each, dtype=image.dtype).view(3, 1, 1) for each in (MEAN, STD))
    return (image - mean) / std


def open_photo(path: Path, declared_range: tuple[float, float] | None = None) -> Image.Image:
    """Read a photo upright and in RGB; arguments and errors as for ``read_photo``."""
    with _opened(path) as image:
        return _to_rgb(path, image, declared_range)


def photo_hw(path: Path) -> tuple[int, int]:
    """Return height and width of a photo when upright, of which only the head is read.

    Raises:
        CommandError: As for ``read_photo``.
    """
    with _opened(path) as image:
        width, height = image.size
        is_turned = image.getexif().get(ExifTags.Base.Orientation, 1) in _TURNED
        return (width, height) if is_turned else (height, width)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open a photo for a block; what fails in there is told with the photo's name."""
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        # Opening a pipe would wait for its writer, and it cannot be read twice.
        raise CommandError(f"{path}: a pipe or device; save it to a file first")
    try:
        with warnings.catch_warnings():
            # At half of the size that is refused.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                yield image
    except CommandError:
        raise
    except FileNotFoundError:
        raise CommandError(f"{path}: no such file") from None
    except UnidentifiedImageError:
        raise CommandError(f"{path}: not a photo in a known format") from None
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise CommandError(
            f"{path}: too large: wanted at most {most / 1e6:.0f} million pixels, Pillow's limit; "
            "make a smaller copy, or cut it into tiles"
        ) from None
    # Pillow's decoders raise nearly anything on damaged files.
    except Exception as error:
        strerror = error.strerror if isinstance(error, OSError) else None
        reason = strerror or str(error).partition("\n")[0] or type(error).__name__
        raise CommandError(f"{path}: cannot be read: {reason}") from error


def _to_rgb(
    path: Path, opened: Image.Image, declared_range: tuple[float, float] | None
) -> Image.Image:
    image: Image.Image = ImageOps.exif_transpose(opened)
    if image.mode == "F" or image.mode.startswith("I"):
        # Pillow would clip these at 255.
        values = np.asarray(image)
        # What the file declares is lost to a turned picture.
        found = value_range(opened, values, declared_range)
        if found is None:
            raise CommandError(f"{path}: no pixel is a finite number")
        _log.info("%s: black is %g, white %g, %s", path, *found)
        return Image.fromarray(to_gray(values, found.black, found.white)).convert("RGB")
    if declared_range is not None:
        _log.warning(
            "%s: --range says nothing of it: it is for gray pictures of more than 8 bits, got %s",
            path,
            image.mode,
        )
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        color = image.convert("RGBA")
        white = Image.new("RGBA", color.size, "white")
        return Image.alpha_composite(white, color).convert("RGB")
    return image.convert("RGB")
