# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Names of DINOv3 models go to huggingface_hub, and each of its failures is one sentence."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from checkpoint_cases import saved
from dinov3_cases import GOLDEN, dinov3_model
from safetensors.torch import load_file, save_file

from vitadapter_fast import CheckpointError
from vitadapter_fast.commands.convert import main
from vitadapter_fast.weights import load_checkpoint
from vitadapter_fast.weights.hub import hub_names, repository

SMALL = "facebook/dinov3-vits16-pretrain-lvd1689m"
HF = GOLDEN / "dinov3_tiny_mlp_hf.safetensors"


# As in huggingface_hub.errors, where they differ in what they are of.
class HfHubHTTPError(OSError):
    def __init__(self, message: str, status: int = 500) -> None:
        super().__init__(message)
        self.response = SimpleNamespace(status_code=status)


class RepositoryNotFoundError(HfHubHTTPError):
    pass


class GatedRepoError(RepositoryNotFoundError):
    pass


class EntryNotFoundError(Exception):
    pass


class LocalEntryNotFoundError(FileNotFoundError, EntryNotFoundError):
    pass


class OfflineModeIsEnabled(ConnectionError):
    pass


class Hub:
    """Repositories of a hub, what was asked of it, and what it raises instead of answering."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "snapshots" / "0a1b2c"
        self.folder.mkdir(parents=True)
        self.asked: list[tuple[str, str]] = []
        self.revisions: list[str | None] = []
        self.failure: Callable[[], Exception] | None = None
        self.is_offline = False

    def hf_hub_download(
        self,
        repo_id: str,
        filename: str,
        *,
        revision: str | None = None,
        local_files_only: bool = False,
    ) -> str:
        self.asked.append((repo_id, filename))
        self.revisions.append(revision)
        path = self.folder / filename
        if self.failure is not None:
            raise self.failure()
        if path.exists():
            return str(path)
        if self.is_offline or local_files_only:
            raise LocalEntryNotFoundError("Cannot find it. More.") from OfflineModeIsEnabled("no")
        raise EntryNotFoundError("404 Client Error. Entry Not Found")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A hub that is installed as huggingface_hub, in an empty current folder."""
    hub = Hub(tmp_path / "cache")
    module, errors = ModuleType("huggingface_hub"), ModuleType("huggingface_hub.errors")
    module.hf_hub_download = hub.hf_hub_download  # type: ignore[attr-defined]
    for error in (
        RepositoryNotFoundError,
        EntryNotFoundError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    ):
        setattr(errors, error.__name__, error)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return hub


def message(name: str) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(dinov3_model(), name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "repo"),
    [
        ("dinov3_vits16", SMALL),
        ("dinov3_vits16plus", "facebook/dinov3-vits16plus-pretrain-lvd1689m"),
        ("dinov3_vitl16", "facebook/dinov3-vitl16-pretrain-lvd1689m"),
        ("dinov3_vitl16_pretrain_sat493m", "facebook/dinov3-vitl16-pretrain-sat493m"),
        ("dinov3_vith16plus", "facebook/dinov3-vith16plus-pretrain-lvd1689m"),
        ("dinov3_vit7b16_pretrain_sat493m", "facebook/dinov3-vit7b16-pretrain-sat493m"),
        (SMALL, SMALL),
        *[
            (f"timm/vit_{model}", f"timm/vit_{model}")
            for model in (
                "small_patch16_dinov3.lvd1689m",
                "small_plus_patch16_dinov3_qkvb.lvd1689m",
                "large_patch16_dinov3.sat493m",
                "7b_patch16_dinov3.lvd1689m",
            )
        ],
        ("dinov3_vitl16plus", None),
        ("facebook/dinov3-vits16-pretrain-sat493m", None),
        ("timm/vit_7b_patch16_dinov3_qkvb.lvd1689m", None),
        ("dinov2_vits14", None),
    ],
)
def test_name_has_its_repository(name: str, repo: str | None) -> None:
    assert repository(name) == repo
    assert (name in hub_names()) == (repo is not None)


@pytest.mark.parametrize("name", ["dinov3_vits16", SMALL, "timm/vit_small_patch16_dinov3.lvd1689m"])
def test_name_is_downloaded_and_loaded(name: str, hub: Hub) -> None:
    save_file(load_file(HF), hub.folder / "model.safetensors")
    report = load_checkpoint(dinov3_model(), name)
    assert (report.path, report.format) == (hub.folder / "model.safetensors", "hf")
    assert hub.asked == [(repository(name), "model.safetensors")]
    assert dinov3_model(pretrained=name).embed_dim == 48


def in_shards(folder: Path) -> list[str]:
    """Write the tiny model as the largest ones are published; return the files' names."""
    tensors = load_file(HF)
    names = list(tensors)
    shards = {f"model-0000{i}-of-00002.safetensors": names[i - 1 :: 2] for i in (1, 2)}
    for shard, held in shards.items():
        save_file({name: tensors[name] for name in held}, folder / shard)
    index = {"weight_map": {name: shard for shard, held in shards.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return ["model.safetensors", "model.safetensors.index.json", *shards]


@pytest.mark.parametrize("is_offline", [False, True])
def test_shards_are_downloaded_with_their_index(is_offline: bool, hub: Hub) -> None:
    hub.is_offline = is_offline
    wanted = in_shards(hub.folder)
    report = load_checkpoint(dinov3_model(), "dinov3_vit7b16")
    assert report.path.name == "model.safetensors.index.json"
    assert sorted(name for _, name in hub.asked) == sorted(wanted)
    # All of the commit that the index is of.
    assert hub.revisions == [None, None, "0a1b2c", "0a1b2c"]


def test_damaged_index_is_told(hub: Hub) -> None:
    (hub.folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../b"}}')
    assert "may only name files in its own folder" in message("dinov3_vit7b16")


def test_cached_file_needs_no_network(hub: Hub) -> None:
    hub.is_offline = True
    save_file(load_file(HF), hub.folder / "model.safetensors")
    load_checkpoint(dinov3_model(), SMALL)


def test_file_of_that_name_is_no_download(hub: Hub) -> None:
    saved(load_file(HF), Path("dinov3_vits16"))
    load_checkpoint(dinov3_model(), "dinov3_vits16")
    assert hub.asked == []


@pytest.mark.parametrize(
    "failure",
    [
        lambda: GatedRepoError("401 Client Error. Cannot access gated repo", 401),
        lambda: GatedRepoError("403 Client Error. Not in the authorized list", 403),
        lambda: RepositoryNotFoundError("401 Client Error. Repository Not Found", 401),
        lambda: HfHubHTTPError("403 Forbidden: token has no permission", 403),
    ],
    ids=["gated", "not-granted", "no-token", "weak-token"],
)
def test_missing_access_says_how_to_get_it(failure: Callable[[], Exception], hub: Hub) -> None:
    hub.failure = failure
    assert message("dinov3_vits16") == (
        f"dinov3_vits16: no access to {SMALL}: accept its license at https://huggingface.co/{SMALL}"
        ", and log in there with a token that may read it (hf auth login, or the variable HF_TOKEN)"
    )


def test_access_that_was_refused_on_the_way_is_told(hub: Hub) -> None:
    def failure() -> Exception:
        error = LocalEntryNotFoundError("An error happened. More.")
        error.__cause__ = HfHubHTTPError("403", 403)
        return error

    hub.failure = failure
    assert "no access to" in message("dinov3_vits16")


def test_offline_mode_is_told(hub: Hub) -> None:
    hub.is_offline = True
    assert (
        f"{SMALL} is not in huggingface_hub's cache, and HF_HUB_OFFLINE forbids to download it"
    ) in message("dinov3_vits16")


def test_network_that_is_down_is_told(hub: Hub) -> None:
    def failure() -> Exception:
        error = LocalEntryNotFoundError("An error happened. More.")
        error.__cause__ = ConnectionError("Name or service not known")
        return error

    hub.failure = failure
    assert message(SMALL).endswith("cannot be downloaded: Name or service not known")


def test_repository_without_the_files_is_told(hub: Hub) -> None:
    told = f"{SMALL} has neither model.safetensors nor model.safetensors.index.json"
    assert told in message("dinov3_vits16")


@pytest.mark.parametrize("error", [OSError("disk full"), HfHubHTTPError("500"), RuntimeError("x")])
def test_other_failure_is_told(error: Exception, hub: Hub) -> None:
    hub.failure = lambda: error
    assert message(SMALL) == f"{SMALL}: cannot download {SMALL}: {error}"


@pytest.mark.parametrize("missing", ["huggingface_hub", "huggingface_hub.errors"])
def test_missing_package_is_told(missing: str, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    told = message("dinov3_vits16")
    assert 'pip install "vitadapter_fast[hub]"' in told
    assert f"or download {SMALL} and give its path" in told


@pytest.mark.parametrize(
    "name",
    ["dinov3_vits14", "dinov3_vitl16plus", "facebook/dinov3-convnext-tiny", "timm/x_dinov3.lvd"],
)
def test_name_that_is_none_lists_those_that_are(name: str, hub: Hub) -> None:
    assert f"{name}: no such file, and none of the ViTs that are downloaded: dinov3_vits16, " in (
        message(name)
    )
    assert hub.asked == []


@pytest.mark.parametrize("name", ["dinov3_vits16.pth", "facebook/x", "dinov3/vit.pth"])
def test_other_path_is_a_file(name: str, hub: Hub) -> None:
    assert message(name).endswith(f"{name}: no such file")


def test_unsigned_address_of_meta_is_refused(hub: Hub) -> None:
    url = "https://dl.fbaipublicfiles.com/dinov3/dinov3_vits16/dinov3_vits16_pretrain.pth"
    assert "only to the signed addresses that it mails" in message(url)


def test_conversion_of_a_name_says_that_it_is_none(
    hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["dinov3_vits16"]) == 1
    assert "has patch size 16 already; give the name to load_checkpoint" in capsys.readouterr().err
    assert hub.asked == []


@pytest.mark.parametrize("format", ["official.pth", "hf.safetensors", "timm.safetensors"])
def test_conversion_of_a_file_says_that_it_is_none(
    format: str, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    path: Any = GOLDEN / f"dinov3_tiny_mlp_{format}"
    assert main([str(path), "--out", "x.pth"]) == 1
    assert capsys.readouterr().err == (
        f"error: {path}: a DINOv3 ViT, which has patch size 16 already and loads as it is\n"
    )
