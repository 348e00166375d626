# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A Hugging Face folder, or the index of a checkpoint in several files, in; one set of tensors out.

An index is ``{"weight_map": {tensor: file beside the index}}``.
"""

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from torch import Tensor

from ..errors import CheckpointError
from .files import listing, read_file

# In the order in which transformers looks for them.
_IN_FOLDERS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})(\.\w+)", re.DOTALL)
# An index of 100,000 tensors has a tenth of it.
_MAX_INDEX_BYTES = 1 << 27


def weights_of_folder(folder: Path) -> tuple[Path, tuple[str, ...]]:
    """Return the file that holds the weights of a Hugging Face folder, and what else could.

    Args:
        folder: With ``model.safetensors``, ``pytorch_model.bin`` or the index of one in shards.

    Raises:
        CheckpointError: There is none.
    """
    found = [name for name in _IN_FOLDERS if os.path.isfile(folder / name)]
    if found:
        return folder / found[0], tuple(found[1:])
    if os.path.isdir(folder / "snapshots"):
        hint = "; of a Hugging Face cache give one of the folders in snapshots/"
    elif os.path.exists(folder / ".metadata"):
        hint = (
            "; make one file of what torch.distributed.checkpoint wrote: "
            "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE"
        )
    else:
        hint = "; give the file itself"
    raise CheckpointError(f"{folder}: a directory without {' or '.join(_IN_FOLDERS)}{hint}")


def read_index(path: Path) -> dict[str, Tensor]:
    """Read all tensors that an index names.

    Args:
        path: The index; its shards lie beside it.

    Returns:
        The tensors, in the order of the shards; mapped from the disk as those of a single file.

    Raises:
        CheckpointError: The index is damaged, names a file outside its folder, or disagrees with
            the shards; a shard is missing or cannot be read.
    """
    shard_of = _weight_map(path)
    shards = list(dict.fromkeys(shard_of.values()))
    missing = [shard for shard in shards if not os.path.isfile(path.parent / shard)]
    if missing:
        raise CheckpointError(
            f"{path}: {len(missing)} of its {len(shards)} shards are missing in {path.parent}: "
            f"{listing(missing)}; fetch them"
        )
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        part = read_file(path.parent / shard)
        if not isinstance(part, Mapping):
            raise CheckpointError(
                f"{path}: its shard {shard} holds one {type(part).__name__}, wanted named tensors"
            )
        named = {name: value.detach() for name, value in part.items() if isinstance(value, Tensor)}
        absent = [name for name in shard_of if shard_of[name] == shard and name not in named]
        if absent:
            raise CheckpointError(
                f"{path}: its shard {shard} does not hold {listing(absent)}; fetch both again"
            )
        twice = [name for name in named if name in tensors]
        if twice:
            raise CheckpointError(
                f"{path}: two of its shards hold {listing(twice)}; fetch them again"
            )
        tensors.update(named)
    return tensors


def shards_of(path: Path) -> list[Path]:
    """Return the files that an index names; CheckpointError if it is damaged."""
    return [path.parent / shard for shard in dict.fromkeys(_weight_map(path).values())]


def refuse_lone_shard(path: Path) -> None:
    """Raise CheckpointError if a file is one of several that hold a checkpoint together."""
    for index in _indexes_beside(path):
        shards: set[str] = set()
        with suppress(CheckpointError):
            shards = set(_weight_map(index).values())
        if path.name in shards and len(shards) > 1:
            raise CheckpointError(f"{path}: one of {len(shards)} shards; load {index}")
    match = _SHARD.fullmatch(path.name)
    if match and int(match[2]) > 1:
        index = path.with_name(f"{match[1]}{match[3]}.index.json")
        raise CheckpointError(
            f"{path}: one of {int(match[2])} shards; fetch the others and {index.name} into this "
            f"folder, and load {index}"
        )


def is_part_of_several(name: str) -> bool:
    """Return whether a file's name is that of an index, or of one of several shards."""
    match = _SHARD.fullmatch(name)
    return name.endswith(".index.json") or (match is not None and int(match[2]) > 1)


def _indexes_beside(path: Path) -> list[Path]:
    try:
        names = os.listdir(path.parent)
    except OSError:
        return []
    return [path.parent / name for name in sorted(names) if name.endswith(".index.json")]


def _weight_map(path: Path) -> dict[str, str]:
    try:
        if os.path.getsize(path) > _MAX_INDEX_BYTES:
            raise CheckpointError(f"{path}: JSON text, too long for an index of shards")
        content: Any = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    # JSON that is nested too deeply for Python's parser is not an index either.
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: a damaged index of shards: {error}; fetch it again"
        ) from error
    shard_of = content.get("weight_map") if isinstance(content, dict) else None
    if shard_of is None:
        raise CheckpointError(
            f"{path}: JSON text without a weight_map, so no index of shards; give the file with "
            "the weights, or the folder that it is in"
        )
    if not isinstance(shard_of, dict) or not shard_of:
        raise CheckpointError(f"{path}: a damaged index of shards: its weight_map names no tensors")
    for name, shard in shard_of.items():
        if not isinstance(shard, str) or not _is_inside(shard):
            raise CheckpointError(
                f"{path}: an index may only name files in its own folder, got {shard!r} for {name}"
            )
    return shard_of


def _is_inside(name: str) -> bool:
    windows = PureWindowsPath(name)
    # What either system takes for a way out; and "" or ".", which is the folder itself.
    return not (
        windows.drive
        or windows.root
        or not windows.parts
        or ".." in windows.parts
        or ".." in PurePosixPath(name).parts
        or "\0" in name
    )
