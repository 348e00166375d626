# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The name of a DINOv3 model in; its file in huggingface_hub's cache, downloaded once, out."""

from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..errors import CheckpointError
from ..files import first_sentence
from .files import listing
from .shards import shards_of

# Published models, with the images that each was trained on.
_LVD, _SAT = "lvd1689m", "sat493m"
_OFFICIAL = {
    **dict.fromkeys(("vits16", "vits16plus", "vitb16", "vith16plus"), (_LVD,)),
    **dict.fromkeys(("vitl16", "vit7b16"), (_LVD, _SAT)),
}
_SMALLER = ("small", "small_plus", "base", "huge_plus")
# "qkvb" is with biases of zeros for queries and values.
_TIMM = {
    **dict.fromkeys(
        [f"{size}_patch16_dinov3{end}" for size in _SMALLER for end in ("", "_qkvb")], (_LVD,)
    ),
    **dict.fromkeys(
        ("large_patch16_dinov3", "large_patch16_dinov3_qkvb", "7b_patch16_dinov3"), (_LVD, _SAT)
    ),
}
_FILE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_HOST, _FOLDER = "dl.fbaipublicfiles.com", "/dinov3/"


def _repositories() -> dict[str, str]:
    """Return the repository of each name: Meta's of models and of files, and its own."""
    found = {f"dinov3_{model}": f"facebook/dinov3-{model}-pretrain-{_LVD}" for model in _OFFICIAL}
    for model, images in _OFFICIAL.items():
        for data in images:
            repo = f"facebook/dinov3-{model}-pretrain-{data}"
            found[f"dinov3_{model}_pretrain_{data}"] = found[repo] = repo
    for model, images in _TIMM.items():
        for data in images:
            found[f"timm/vit_{model}.{data}"] = f"timm/vit_{model}.{data}"
    return found


_REPOSITORIES = _repositories()


def repository(name: str) -> str | None:
    """Return the repository on huggingface.co of a DINOv3 model, None if a name is none of one.

    Args:
        name: The repository's, of facebook or timm, or Meta's, such as ``dinov3_vits16``.
    """
    return _REPOSITORIES.get(name)


def hub_names() -> list[str]:
    """Return all names that ``repository`` knows."""
    return list(_REPOSITORIES)


def refuse_unknown(name: str) -> None:
    """Raise CheckpointError for the name of a DINOv3 model that is none of ``hub_names``."""
    parts = name.split("/")
    is_of_hub = len(parts) == 2 and parts[0] in ("facebook", "timm") and "dinov3" in parts[1]
    if is_of_hub or (name.startswith("dinov3_") and not Path(name).suffix):
        raise CheckpointError(
            f"{name}: no such file, and none of the ViTs that are downloaded: "
            f"{listing(f'dinov3_{model}' for model in _OFFICIAL)}, and repositories of facebook "
            f"and timm, such as {_REPOSITORIES['dinov3_vits16']}"
        )


def refuse_unsigned(url: str) -> None:
    """Raise CheckpointError for an address of Meta's that does not serve without a signature."""
    address = urlsplit(url)
    if address.hostname == _HOST and address.path.startswith(_FOLDER) and not address.query:
        raise CheckpointError(
            f"{url}: Meta serves DINOv3's files only to the signed addresses that it mails after "
            "its license was accepted; give one of those, a file, or a name such as "
            "dinov3_vits16, which is downloaded from huggingface.co"
        )


def fetched(name: str) -> Path:
    """Return the file of a DINOv3 model, or the index of its shards, in huggingface_hub's cache.

    What is there is not downloaded again, what was begun goes on, and the user's token, HF_TOKEN
    and HF_HUB_OFFLINE count as everywhere with that package.

    Args:
        name: One of ``hub_names``.

    Raises:
        CheckpointError: The package is missing; or the model is neither in the cache nor can it
            be downloaded: access was not granted, or the network is off.
    """
    repo = _REPOSITORIES[name]
    try:
        hub, errors = import_module("huggingface_hub"), import_module("huggingface_hub.errors")
    except ImportError as error:
        raise CheckpointError(
            f"{name}: downloading from huggingface.co wants the package huggingface_hub ({error}); "
            f'install it (pip install "vitadapter_fast[hub]"), or download {repo} and give its path'
        ) from error
    try:
        return _downloaded(hub, errors, repo)
    except CheckpointError:
        raise
    # By then huggingface_hub may have raised anything of its own or of its HTTP client's.
    except Exception as error:
        raise CheckpointError(f"{name}: {_reason(errors, repo, error)}") from error


def _downloaded(hub: Any, errors: Any, repo: str) -> Path:
    try:
        return Path(hub.hf_hub_download(repo, _FILE))
    except errors.EntryNotFoundError as error:
        # Also where it is not in the cache, and no network to ask.
        is_off = isinstance(error, errors.LocalEntryNotFoundError)
        try:
            index = Path(hub.hf_hub_download(repo, _INDEX, local_files_only=is_off))
        except errors.EntryNotFoundError:
            raise error from error.__cause__
    for shard in shards_of(index):
        hub.hf_hub_download(
            repo,
            shard.relative_to(index.parent).as_posix(),
            # That of the index: the folder of a snapshot is called by it.
            revision=index.parent.name,
            local_files_only=is_off,
        )
    return index


def _reason(errors: Any, repo: str, error: Exception) -> str:
    statuses = {_status(error), _status(error.__cause__)}
    if isinstance(error, errors.RepositoryNotFoundError) or statuses & {401, 403}:
        return (
            f"no access to {repo}: accept its license at https://huggingface.co/{repo}, and log in "
            "there with a token that may read it (hf auth login, or the variable HF_TOKEN)"
        )
    if isinstance(error, errors.LocalEntryNotFoundError):
        if isinstance(error.__cause__, errors.OfflineModeIsEnabled):
            return (
                f"{repo} is not in huggingface_hub's cache, and HF_HUB_OFFLINE forbids to download "
                "it; unset that once, or give the path of a file"
            )
        return (
            f"{repo} is not in huggingface_hub's cache, and cannot be downloaded: "
            f"{first_sentence(error.__cause__ or error)}"
        )
    if isinstance(error, errors.EntryNotFoundError):
        return f"{repo} has neither {_FILE} nor {_INDEX}; download its weights and give their path"
    return f"cannot download {repo}: {first_sentence(error)}"


def _status(error: BaseException | None) -> int | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None
