# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The path of a checkpoint in any form in, its named tensors out."""

import logging
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from ..errors import CheckpointError
from .choice import Weights, choose
from .files import file_format, read_file
from .shards import read_index, refuse_lone_shard, shards_of, weights_of_folder

_log = logging.getLogger("vitadapter_fast")


def read_checkpoint(
    path: str | os.PathLike[str], *, prefer: str | None = None
) -> dict[str, Tensor]:
    """Read the named tensors of a checkpoint onto the CPU, without running any code in it.

    Args:
        path: A safetensors file, or anything that ``torch.save`` wrote, under any name; a Hugging
            Face folder; or the index of a checkpoint in shards. ``~`` is the home folder. A dict
            under ``state_dict``, ``model``, ``teacher`` and the like is taken out.
        prefer: Which of several sets of weights to take: a key of the file, such as ``student`` or
            ``model_ema``; or a word of one, such as ``ema``. ``ema`` is what was averaged, also in
            files of mmengine and Lightning, which keep that under ``state_dict``. None takes the
            one that trainers load; a warning names the others.

    Returns:
        The tensors in the file's order. Those of a zip file or safetensors are mapped from the
        disk, not copied.

    Raises:
        CheckpointError: The file is missing, damaged, not a checkpoint, one of several shards,
            holds Python objects or values that are not tensors, or several sets of weights of
            which ``prefer`` names none.
    """
    return read_weights(path, prefer=prefer).tensors


def read_weights(path: str | os.PathLike[str], *, prefer: str | None = None) -> Weights:
    """Do what ``read_checkpoint`` does, and tell what was taken and what was left."""
    path = home_expanded(path)
    others: tuple[str, ...] = ()
    if os.path.isdir(path):
        folder = path
        path, others = weights_of_folder(folder)
        _log.info("%s: took %s", folder, ", left ".join([path.name, *others]))
    if file_format(path) == "json":
        weights = choose(path, read_index(path), prefer)
    else:
        refuse_lone_shard(path)
        weights = choose(path, read_file(path), prefer)
    return replace(weights, left=weights.left + others)


def files_of(path: str | os.PathLike[str]) -> list[Path]:
    """Return the files that reading a checkpoint opens: first the one of a folder, then shards."""
    path = home_expanded(path)
    if os.path.isdir(path):
        with suppress(CheckpointError):
            path, _ = weights_of_folder(path)
    shards: list[Path] = []
    with suppress(CheckpointError):
        if file_format(path) == "json":
            shards = shards_of(path)
    return [path, *shards]


def home_expanded(path: str | bytes | os.PathLike[str]) -> Path:
    """Return a path with ``~`` replaced by the home folder, unless there is a file of that name."""
    text = os.fsdecode(path)
    if not text:  # pathlib takes it for the current folder
        raise CheckpointError("'': no such file: the path is empty")
    return Path(text if os.path.lexists(text) else os.path.expanduser(text))
