# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A file in, what it holds out, and back: no code in a file runs, no half file is left."""

import os
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save_file
from torch import Tensor

from ..errors import CheckpointError
from ..files import first_sentence, replacing

# Bookkeeping that training frameworks save beside the weights (logs, arguments, scores). Each name
# is replaced by an empty class, so files that hold it load without running anything of it.
_BOOKKEEPING = re.compile(r"(mmengine|mmcv|numpy|pathlib)\..+|argparse\.Namespace|_codecs\.encode")

FileFormat = Literal["safetensors", "zip", "pickle", "json"]

_LISTED = 20
# The longest header that safetensors allows. Eight characters of text spell a longer one.
_MAX_HEADER_BYTES = 100_000_000


class _Inert:
    def __new__(cls, *args: Any, **kwargs: Any) -> "_Inert":
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def listing(items: Iterable[str]) -> str:
    """Return the first 20 items joined by commas, and how many more there are."""
    listed = list(items)
    more = f", ... and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
    return ", ".join(listed[:_LISTED]) + more


def file_format(path: Path) -> FileFormat:
    """Return the format that the first bytes of a file tell; its name tells nothing.

    Args:
        path: The file.

    Raises:
        CheckpointError: The file is missing, empty, unreadable or certainly no checkpoint.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        # Opening a pipe would wait for its writer, and it cannot be read twice.
        raise CheckpointError(f"{path}: a pipe or device; save it to a file first")
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    # A null character, which no file system takes.
    except ValueError as error:
        raise CheckpointError(f"{path!r}: no such file: {error}") from error
    if not head:
        raise CheckpointError(f"{path}: the file is empty; fetch it again")
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path}: a Git LFS pointer, not the weights; run git lfs pull")
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _MAX_HEADER_BYTES:
        return "safetensors"
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text.startswith(b"{"):
        return "json"
    if text.startswith(b"<"):
        raise CheckpointError(
            f"{path}: a web page, not a checkpoint; fetch the file itself (on huggingface.co its "
            "address has /resolve/, that of its page /blob/)"
        )
    return "pickle"


def read_file(path: Path) -> Any:
    """Return what a file holds, on the CPU, without running any code in it.

    Args:
        path: A safetensors file, or what ``torch.save`` wrote, under any name.

    Returns:
        What was saved; tensors of a zip file or safetensors are mapped from the disk, not copied,
        unless the file's name is no UTF-8, or a zip file's that of safetensors.

    Raises:
        CheckpointError: The file is missing, damaged, of another kind, or holds Python objects.
    """
    format = file_format(path)
    if format == "safetensors":
        return _read_safetensors(path)
    if format == "zip":
        return _read_zip(path)
    if format == "json":
        raise CheckpointError(f"{path}: JSON text, not a checkpoint")
    return _load(path, mmap=False)


def write_checkpoint(tensors: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Write named tensors to a file that appears complete or not at all.

    Args:
        tensors: What to write, in this order.
        path: Replaced if it exists. ``.safetensors`` selects that format, all else ``torch.save``.

    Raises:
        CheckpointError: The folder is missing or not writable, or the disk is full.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise CheckpointError(f"{path}: the output folder {path.parent} does not exist")
    if path.is_dir():
        raise CheckpointError(f"{path}: cannot be written: it is a directory")
    try:
        with replacing(path, CheckpointError) as part:
            if path.suffix == ".safetensors":
                contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
                save_file(contiguous, part, metadata={"format": "pt"})
            else:
                # torch's own file writer hides the cause of a failure; a Python file raises it.
                with part.open("wb") as file:
                    torch.save(dict(tensors), file)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: cannot be written: {first_sentence(error)}") from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path) if _is_utf8(path) else load(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path}: truncated, or not a safetensors file: {first_sentence(error)}"
        ) from error


def _is_utf8(path: Path) -> bool:
    """Whether compiled code can open the file, which takes names as UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_zip(path: Path) -> Any:
    try:
        # The directory of a zip file is at its end, so a cut file has none.
        if not zipfile.is_zipfile(path):
            raise EOFError
        _check_sums(path)
        with path.open("rb") as file:
            names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"{path}: the file is damaged: {error}; fetch it again") from error
    except Exception as error:
        raise _unreadable(path, error) from error
    foreign = [name for name in names if not _BOOKKEEPING.fullmatch(name)]
    if foreign:
        raise _holds_code(path, listing(foreign))
    # By this ending newer versions of torch take any file for safetensors.
    can_map = _is_utf8(path) and not path.name.endswith(".safetensors")
    return _load(path, mmap=can_map, inert_names=names)


def _check_sums(path: Path) -> None:
    """Raise BadZipFile where a part of a zip file is not what was written; at 2 GB a second.

    torch compares no checksums, and of a file that it maps not even the headers of the parts.
    """
    with zipfile.ZipFile(path) as archive:
        for part in archive.infolist():
            # torch.serialization.set_crc32_options(False) writes 0.
            if part.CRC == 0:
                continue
            with archive.open(part) as content:
                while content.read(1 << 20):
                    pass


def _load(path: Path, *, mmap: bool, inert_names: Iterable[str] = ()) -> Any:
    stubs: list[Any] = []
    for full_name in inert_names:
        module, _, name = full_name.rpartition(".")
        stubs.append(type(name, (_Inert,), {"__module__": module, "__qualname__": name}))
    allowed: AbstractContextManager[Any] = (
        torch.serialization.safe_globals(stubs) if stubs else nullcontext()
    )
    try:
        with allowed, path.open("rb") as file:
            source = path if mmap else file
            return torch.load(source, map_location="cpu", weights_only=True, mmap=mmap)
    # A damaged pickle can raise nearly anything.
    except Exception as error:
        found = re.search(r"GLOBAL:? (\S+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and found:
            raise _holds_code(path, found[1]) from error
        raise _unreadable(path, error) from error


def _holds_code(path: Path, names: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: holds Python objects ({names}), which are never loaded because they can run "
        "code; if you trust the file, save the state_dict of its model alone and use that"
    )


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    if isinstance(error, EOFError) or "EOF" in str(error):
        return CheckpointError(f"{path}: the file is truncated; fetch it again")
    if isinstance(error, pickle.UnpicklingError):
        return CheckpointError(
            f"{path}: not a checkpoint: neither safetensors nor what torch.save writes, or damaged"
        )
    return CheckpointError(f"{path}: not a PyTorch checkpoint: {first_sentence(error)}")
