# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A path in; files that appear there complete, or not at all, out."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import ExportError
from ..files import replacing_with_others


@contextmanager
def appearing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a path of the same name to write to, moved to ``path`` if the block ends well.

    What is written beside it moves along, so that large ONNX models keep their weights' file.

    Raises:
        ExportError: The folder is missing, the path is no text, or a file cannot be written.
    """
    path = Path(path)
    # Not Path.is_dir, which raises where a name is too long.
    is_folder = os.path.isdir(path)
    if is_folder or not os.path.isdir(path.parent):
        what = "it is a folder" if is_folder else f"the folder {path.parent} does not exist"
        raise ExportError(f"{path}: cannot be written: {what}")
    try:
        os.path.abspath(path).encode()
    except UnicodeEncodeError:
        raise ExportError(
            f"{path}: cannot be written: the libraries that write it take paths of UTF-8 text "
            "alone; choose such a path, and move the file afterward"
        ) from None
    with replacing_with_others(path, ExportError) as part:
        yield part
