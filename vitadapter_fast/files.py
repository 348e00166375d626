# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A path in; a file that appears there complete, or not at all, out."""

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError


@contextmanager
def replacing(path: Path, error_type: type[Exception]) -> Iterator[Path]:
    """Give an empty file to write to, that takes the place of ``path`` if the block ends well.

    Args:
        path: Where it shall appear.
        error_type: What to raise if it cannot.

    Raises:
        error_type: The file cannot be written; ``path`` is as before.
    """
    # In its folder, because only within one file system is a replacement atomic; with a part of its
    # name, because one of 255 bytes has no room for more.
    part = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}.part")
    try:
        part.touch(exist_ok=False)
        mode = part.stat().st_mode
        yield part
        # safetensors makes files for their owner alone; the user's umask shall decide.
        part.chmod(mode)
        os.replace(part, path)
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = _system_error(error)
        if reason is None and isinstance(error, RuntimeError):
            raise
        reason = reason or first_sentence(error)
        raise error_type(f"{path}: cannot be written: {reason}") from error
    finally:
        with suppress(OSError):
            part.unlink()


@contextmanager
def replacing_with_others(path: Path, error_type: type[Exception]) -> Iterator[Path]:
    """Do what ``replacing`` does for a file that names others, which are written beside it.

    The path to write to has the same name and does not exist yet. The others move along.

    Args:
        path: Where the file shall appear.
        error_type: What to raise if it cannot.

    Raises:
        error_type: A file cannot be written.
    """
    try:
        with tempfile.TemporaryDirectory(
            prefix=f".{path.name[:40]}.", suffix=".part", dir=path.parent
        ) as folder:
            yield Path(folder) / path.name
            others = sorted(each for each in Path(folder).iterdir() if each.name != path.name)
            for each in (*others, Path(folder) / path.name):  # the one that names the others last
                os.replace(each, path.with_name(each.name))
    except OSError as error:
        reason = _system_error(error) or first_sentence(error)
        raise error_type(f"{path}: cannot be written: {reason}") from error


def make_folder(folder: Path, error_type: type[Exception]) -> None:
    """Make a folder, and those above it, unless it exists.

    Args:
        folder: Which.
        error_type: What to raise if it cannot be made.

    Raises:
        error_type: As said.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise error_type(f"{folder}: cannot be made: {error.strerror}") from error


def first_sentence(error: BaseException) -> str:
    """Return the first sentence of an error's text, or its type if it has none."""
    return str(error).strip().split(". ")[0].split("\n")[0] or type(error).__name__


def _system_error(error: BaseException) -> str | None:
    """Return what the system said; of torch's own file writer, which hides it, too."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__context__
    return None
