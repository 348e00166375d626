# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The name of a model, or an address, in; the path of the file out, downloaded once."""

import hashlib
import http.client
import logging
import os
import re
import socket
import sys
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import torch

from ..errors import CheckpointError
from ..files import replacing
from ..presets import PRESETS
from .files import listing, read_file
from .formats import official_problems, recognize
from .hub import fetched, refuse_unknown, refuse_unsigned, repository
from .read import home_expanded, read_checkpoint
from .shards import is_part_of_several
from .size import vit_size

DEFAULT_URL = "https://dl.fbaipublicfiles.com/dinov2"
URL_VARIABLE = "VITADAPTER_DINOV2_URL"

_NAME = re.compile(rf"(dinov2_vit([{''.join(PRESETS)}])14)(_reg)?")
# pathlib makes one slash of two. A drive of Windows has one letter.
_ADDRESS = re.compile(r"(\w\w+):/+(.+)", re.DOTALL)
# (bytes, sha256), as mirrors of the files report them, so a difference only warns.
_KNOWN = {
    "dinov2_vits14": (
        88_283_115,
        "b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9",
    ),
    "dinov2_vitb14": (
        346_378_731,
        "0b8b82f85de91b424aded121c7e1dcc2b7bc6d0adeea651bf73a13307fad8c73",
    ),
    "dinov2_vitl14": (
        1_217_586_395,
        "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428",
    ),
}
_STALL_SECONDS = 60.0
_CONNECT_SECONDS = 5.0

_log = logging.getLogger("vitadapter_fast")


@dataclass(frozen=True)
class OfficialModel:
    """A DINOv2 model that its authors publish.

    Attributes:
        name: As in torch.hub, such as ``dinov2_vits14_reg``.
        folder: Of the file, on the server.
        embed_dim: Channels of a token.
        depth: Blocks.
        has_registers: It has four register tokens.
    """

    name: str
    folder: str
    embed_dim: int
    depth: int
    has_registers: bool

    @property
    def file_name(self) -> str:
        """Name of the file on the server."""
        return f"{self.folder}_{'reg4_' if self.has_registers else ''}pretrain.pth"

    @property
    def url(self) -> str:
        """Address of the file; the variable VITADAPTER_DINOV2_URL names another server."""
        base = os.environ.get(URL_VARIABLE) or DEFAULT_URL
        return f"{base.rstrip('/')}/{self.folder}/{self.file_name}"


def official_model(name: str) -> OfficialModel | None:
    """Return the published model of a name such as ``dinov2_vitb14``, None if there is none."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    preset = PRESETS[match[2]]
    return OfficialModel(name, match[1], preset.embed_dim, preset.depth, match[3] is not None)


def official_names() -> list[str]:
    """Return all names that ``official_model`` knows."""
    return [f"dinov2_vit{size}14{end}" for size in PRESETS for end in ("", "_reg")]


def is_address(name: str) -> bool:
    """Return whether a name is that of a place on a network."""
    return _ADDRESS.fullmatch(name) is not None


def download(model: OfficialModel, folder: Path, *, has_progress_bar: bool = False) -> Path:
    """Download an official checkpoint into a folder, unless it is there.

    Args:
        model: What to download.
        folder: Where to; must exist.
        has_progress_bar: Show one on stderr.

    Returns:
        The file, which reads as the model.

    Raises:
        CheckpointError: The folder is missing, the server cannot be reached, or what it sent is not
            this model. Nothing is left behind.
    """
    target = folder / model.file_name
    if target.exists():
        _check(model, target)
        return target

    def check(part: Path) -> None:
        _check(model, part)
        _compare_with_known(model, part)

    _fetch(model.url, target, check, model.name, "this model", has_progress_bar)
    return target


def located(path: str | bytes | os.PathLike[str]) -> Path:
    """Return the file or folder of a checkpoint; what is not here is downloaded, once.

    Args:
        path: A file or folder, also with ``~``; a name as for ``official_model``, unless there is a
            file of that name; or an http(s) address. The last two go to torch.hub's folder of
            checkpoints, ``torch.hub.get_dir()/checkpoints``. Or a name as for ``repository``, whose
            files go to the cache of huggingface_hub.

    Raises:
        CheckpointError: The server cannot be reached, or what it sent is not a checkpoint; or the
            address is of another kind.
    """
    text = os.fsdecode(path)
    if os.path.exists(text):
        return Path(text)
    address = _ADDRESS.fullmatch(text)
    if address is not None:
        return _download_address(f"{address[1].lower()}://{address[2]}", address[1].lower())
    if repository(text) is not None:
        return fetched(text)
    refuse_unknown(text)
    model = official_model(text)
    if model is None and text.startswith("dinov2_vit") and not Path(text).suffix:
        raise CheckpointError(
            f"{text}: no such file, and none of the names that are downloaded: "
            f"{listing(official_names())}"
        )
    if model is None:
        return home_expanded(path)
    has_progress_bar = sys.stderr is not None and sys.stderr.isatty()
    return download(model, _hub_folder(text), has_progress_bar=has_progress_bar)


def unasked(name: str, *, may_download: bool) -> Path:
    """Return the file of a published model that nobody named: nobody waits long for it.

    Args:
        name: As for ``official_model``.
        may_download: Whether to download what is not in torch.hub's folder of checkpoints.

    Raises:
        CheckpointError: It is not there, and must not or cannot be downloaded.
    """
    model = official_model(name)
    assert model is not None
    if not (Path(torch.hub.get_dir()) / "checkpoints" / model.file_name).exists():
        if not may_download:
            raise CheckpointError(f"{name} was not downloaded; --weights {name} does it")
        try:
            urllib.request.urlopen(model.url, timeout=_CONNECT_SECONDS).close()
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise CheckpointError(f"{name}: cannot reach {model.url}: {error}") from error
        _log.info("%s: downloading the weights, once; --weights random does without", name)
    return located(name)


def _download_address(url: str, scheme: str) -> Path:
    if scheme not in ("http", "https"):
        raise CheckpointError(
            f"{url}: cannot be downloaded; wanted http:// or https://, or fetch the file with a "
            f"tool for {scheme}:// and give its path"
        )
    for model in map(official_model, official_names()):
        # So that the file is the same one as that of the name, also torch.hub's own.
        if model is not None and model.url == url:
            return located(model.name)
    try:
        name = Path(unquote(urlsplit(url).path)).name
    except ValueError as error:
        raise CheckpointError(f"{url}: not an address: {error}") from error
    refuse_unsigned(url)
    if is_part_of_several(name):
        raise CheckpointError(
            f"{url}: one of several files that hold a checkpoint together; download the folder and "
            "give its path"
        )
    # All weights on huggingface.co are called model.safetensors.
    digest = hashlib.sha256(url.encode("utf-8", "surrogateescape")).hexdigest()[:12]
    target = _hub_folder(url) / f"{digest}_{name[-100:]}"

    def check(part: Path) -> None:
        content = read_file(part)
        # Which of several sets of weights is wanted, the caller knows.
        if not isinstance(content, Mapping):
            raise CheckpointError(f"{part}: holds one {type(content).__name__}, wanted a dict")

    if not target.exists():
        has_progress_bar = sys.stderr is not None and sys.stderr.isatty()
        _fetch(url, target, check, url, "a checkpoint", has_progress_bar)
    return target


def _hub_folder(what: str) -> Path:
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"{what}: cannot be downloaded: the folder {folder} cannot be made: {error.strerror}; "
            "TORCH_HOME names another"
        ) from error
    return folder


def _fetch(
    url: str,
    target: Path,
    check: Callable[[Path], None],
    who: str,
    wanted: str,
    has_progress_bar: bool,
) -> None:
    """Download a file that appears whole and checked, or not at all."""
    if not target.parent.is_dir():
        raise CheckpointError(f"{who}: the output folder {target.parent} does not exist")
    _log.info("%s: downloading %s to %s", who, url, target)
    with replacing(target, CheckpointError) as part:
        stall_seconds = socket.getdefaulttimeout()
        # torch.hub sets no limit of its own and would wait forever on a silent server.
        socket.setdefaulttimeout(_STALL_SECONDS)
        try:
            torch.hub.download_url_to_file(url, str(part), progress=has_progress_bar)
            check(part)
        except CheckpointError as error:
            reason = str(error).removeprefix(f"{part}: ")
            sender = url if who == url else f"{who}: {url}"
            raise CheckpointError(f"{sender} did not send {wanted}: {reason}") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise CheckpointError(f"{who}: cannot download {url}: {error}") from error
        finally:
            socket.setdefaulttimeout(stall_seconds)


def _check(model: OfficialModel, path: Path) -> None:
    official = recognize(read_checkpoint(path), str(path)).tensors
    problems = official_problems(official)
    if problems:
        raise CheckpointError(f"{path}: not a DINOv2 checkpoint: {problems}")
    size = vit_size(official)
    assert size is not None
    has_registers = "register_tokens" in official
    is_same = (size.embed_dim, size.depth) == (model.embed_dim, model.depth)
    if not is_same or size.patch_hw != (14, 14) or has_registers != model.has_registers:
        raise CheckpointError(
            f"{path}: wanted {model.name}, got a {size} with patch size {size.patch_hw[0]}, "
            f"{'with' if has_registers else 'without'} register tokens"
        )


def _compare_with_known(model: OfficialModel, path: Path) -> None:
    if model.name not in _KNOWN:
        return
    num_bytes, sha256 = _KNOWN[model.name]
    if path.stat().st_size != num_bytes:
        _log.warning("%s: %d bytes, known are %d", model.name, path.stat().st_size, num_bytes)
    elif (digest := _sha256(path)) != sha256:
        _log.warning("%s: sha256 %s, known is %s", model.name, digest, sha256)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
