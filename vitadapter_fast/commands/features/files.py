# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""What the user asked to write in, checked paths out."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from ...errors import CommandError
from .photos import photo_suffixes

_PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def picture_paths(
    names: Sequence[str], inputs: Sequence[Path], out: Path | None, *, is_many: bool
) -> dict[str, Path]:
    """Return where the picture of each photo goes, by name.

    Args:
        names: Unique name of each photo.
        inputs: Photos and weights, which no picture may replace.
        out: A file, or a folder; None for ``features.png`` or, for many, the folder ``features``.
        is_many: Whether ``out`` has to be a folder, which may not exist yet.

    Raises:
        CommandError: ``out`` is of the wrong kind, or one of the inputs.
    """
    if is_many:
        folder = Path("features") if out is None else out
        is_file = os.path.exists(folder) and not os.path.isdir(folder)
        if is_file or folder.suffix.lower() in photo_suffixes():
            raise CommandError(f"--out {folder}: wanted a folder, for the pictures of many photos")
        targets = {name: folder / f"{name}.png" for name in names}
    else:
        picture = Path("features.png") if out is None else out
        if os.path.isdir(picture):
            picture = picture / f"{names[0]}.png"
        if picture.suffix.lower() not in _PICTURE_SUFFIXES:
            raise CommandError(
                f"--out {picture}: wanted a name that ends in {', '.join(_PICTURE_SUFFIXES)}"
            )
        _check_folder("--out", picture)
        targets = {names[0]: picture}
    _check_inputs("--out", targets.values(), inputs)
    return targets


def check_save_path(path: Path, inputs: Sequence[Path]) -> None:
    """Raise CommandError unless feature maps can go to ``path``, which is no input."""
    if path.suffix != ".safetensors" or os.path.isdir(path):
        raise CommandError(f"--save {path}: wanted a file name that ends in .safetensors")
    _check_folder("--save", path)
    _check_inputs("--save", [path], inputs)


def _check_folder(option: str, path: Path) -> None:
    if not os.path.isdir(path.parent):
        raise CommandError(f"{option} {path}: the folder {path.parent} does not exist")


def _check_inputs(option: str, targets: Iterable[Path], inputs: Iterable[Path]) -> None:
    taken = {os.path.realpath(path) for path in inputs}
    for target in targets:
        if os.path.realpath(target) in taken:
            raise CommandError(
                f"{option}: {target} is one of the inputs and would be overwritten; name another"
            )
