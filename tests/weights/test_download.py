# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Model names download the official file, once and checked; a failure leaves nothing."""

import logging
import socket
from pathlib import Path

import pytest
import torch
from checkpoint_cases import Payload, as_hf, official, published_size, saved, tiny_model
from download_server import SMALL, SMALL_REG, Server, pth_bytes
from folders import names_in
from safetensors.torch import save

from vitadapter_fast import CheckpointError, vit_adapter_s
from vitadapter_fast.commands.convert import main
from vitadapter_fast.weights import download, load_checkpoint
from vitadapter_fast.weights.download import OfficialModel, official_model


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("dinov2_vits14", "dinov2_vits14/dinov2_vits14_pretrain.pth"),
        ("dinov2_vitb14", "dinov2_vitb14/dinov2_vitb14_pretrain.pth"),
        ("dinov2_vitl14_reg", "dinov2_vitl14/dinov2_vitl14_reg4_pretrain.pth"),
        ("dinov2_vitg14_reg", "dinov2_vitg14/dinov2_vitg14_reg4_pretrain.pth"),
    ],
)
def test_name_has_its_official_address(
    name: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VITADAPTER_DINOV2_URL", raising=False)
    model = official_model(name)
    assert isinstance(model, OfficialModel)
    assert model.url == f"https://dl.fbaipublicfiles.com/dinov2/{path}"


@pytest.mark.parametrize("name", ["dinov2_vits14.pth", "dinov2_vitx14", "vits14", "dinov2_vits16"])
def test_other_words_are_no_names(name: str) -> None:
    assert official_model(name) is None


@pytest.mark.parametrize(
    ("name", "path", "keys"),
    [
        ("dinov2_vits14", SMALL, "official_small"),
        ("dinov2_vits14_reg", SMALL_REG, "official_small_reg4"),
    ],
)
def test_name_downloads_and_converts(
    name: str, path: str, keys: str, server: Server, folder: Path, tmp_path: Path
) -> None:
    server.files[path] = pth_bytes(keys, tmp_path)
    assert main([name]) == 0
    stem = Path(path).stem
    assert names_in(folder) == [f"{stem}.pth", f"{stem}_14to16.pth"]
    assert (folder / f"{stem}.pth").read_bytes() == server.files[path]


def test_out_folder_takes_the_download_too(server: Server, folder: Path, tmp_path: Path) -> None:
    server.files[SMALL] = pth_bytes("official_small", tmp_path)
    (tmp_path / "out").mkdir()
    assert main(["dinov2_vits14", "--out", str(tmp_path / "out")]) == 0
    wanted = ["dinov2_vits14_pretrain.pth", "dinov2_vits14_pretrain_14to16.pth"]
    assert (names_in(tmp_path / "out"), names_in(folder)) == (wanted, [])


def test_second_run_downloads_nothing(server: Server, folder: Path, tmp_path: Path) -> None:
    server.files[SMALL] = pth_bytes("official_small", tmp_path)
    main(["dinov2_vits14"])
    assert main(["dinov2_vits14"]) == 0
    assert server.requested == [SMALL]


def test_file_of_that_name_is_no_download(server: Server, folder: Path) -> None:
    saved(published_size("official_small"), folder / "dinov2_vits14")
    assert main(["dinov2_vits14"]) == 0
    assert names_in(folder) == ["dinov2_vits14", "dinov2_vits14_14to16.pth"]


def test_other_byte_size_warns(
    server: Server, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.files[SMALL] = pth_bytes("official_small", tmp_path)
    main(["dinov2_vits14"])
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "known are 88283115" in warning.getMessage()


def test_other_sha256_warns(
    server: Server,
    folder: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = server.files[SMALL] = pth_bytes("official_small", tmp_path)
    known = {"dinov2_vits14": (len(content), "00ff")}
    monkeypatch.setattr(download, "_KNOWN", known)
    main(["dinov2_vits14"])
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.getMessage().endswith("known is 00ff")


def failure(capsys: pytest.CaptureFixture[str], name: str = "dinov2_vits14") -> str:
    assert main([name]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {name}: ")
    return line


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ("official_base", "got a ViT-B (embed_dim 768, 12 blocks)"),
        ("official_small_reg4", "with register tokens"),
    ],
)
def test_other_model_is_refused_and_removed(
    keys: str,
    reason: str,
    server: Server,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server.files[SMALL] = pth_bytes(keys, tmp_path)
    assert reason in failure(capsys)
    assert names_in(folder) == []


def test_missing_file_on_the_server_is_told(
    server: Server, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "cannot download http://127.0.0.1" in (line := failure(capsys))
    assert "404" in line
    assert names_in(folder) == []


def test_unreachable_server_is_told(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    # Port 9 (discard) has no server.
    monkeypatch.setenv("VITADAPTER_DINOV2_URL", "http://127.0.0.1:9")
    assert "cannot download http://127.0.0.1:9/" in failure(capsys)
    assert names_in(folder) == []


def test_silent_server_is_given_up(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "_STALL_SECONDS", 0.1)
    # Accepts connections and never answers.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        monkeypatch.setenv("VITADAPTER_DINOV2_URL", f"http://127.0.0.1:{port}")
        assert "timed out" in failure(capsys)
    assert names_in(folder) == []


def test_cut_download_is_refused_and_removed(
    server: Server, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.files[SMALL] = pth_bytes("official_small", tmp_path)[:-5000]
    server.num_withheld = 5000
    assert "truncated" in failure(capsys)
    assert names_in(folder) == []


def test_hostile_download_is_removed_and_not_run(
    server: Server, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = {**published_size("official_small"), "payload": Payload(tmp_path / "mark")}
    server.files[SMALL] = saved(content, tmp_path / "served.pth").read_bytes()
    assert "can run code" in failure(capsys)
    assert (names_in(folder), (tmp_path / "mark").exists()) == ([], False)


def test_interrupted_download_is_removed(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(url: str, path: str, progress: bool) -> None:
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.hub, "download_url_to_file", interrupt)
    assert main(["dinov2_vits14"]) == 130
    assert names_in(folder) == []


def test_other_model_that_was_there_is_refused(
    server: Server, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(published_size("official_base"), folder / "dinov2_vits14_pretrain.pth")
    assert main(["dinov2_vits14"]) == 1
    assert "wanted dinov2_vits14, got a ViT-B" in capsys.readouterr().err


def test_damaged_file_that_was_there_is_kept(server: Server, folder: Path) -> None:
    (folder / "dinov2_vits14_pretrain.pth").write_bytes(b"mine")
    main(["dinov2_vits14"])
    assert (folder / "dinov2_vits14_pretrain.pth").read_bytes() == b"mine"


@pytest.mark.parametrize("kind", [str, Path])
def test_pretrained_takes_a_name_and_downloads_it_once(
    kind: type, server: Server, folder: Path, hub: Path, tmp_path: Path
) -> None:
    server.files[SMALL] = pth_bytes("official_small", tmp_path)
    for _ in range(2):
        vit_adapter_s(pretrained=kind("dinov2_vits14"))
    assert (names_in(hub), names_in(folder)) == (["dinov2_vits14_pretrain.pth"], [])
    assert server.requested == [SMALL]


def test_name_that_is_none_lists_those_that_are(folder: Path) -> None:
    with pytest.raises(
        CheckpointError, match="none of the names .* dinov2_vits14, dinov2_vits14_reg"
    ):
        load_checkpoint(tiny_model(), "dinov2_vits16")


def test_file_with_a_models_name_is_loaded(server: Server, folder: Path, hub: Path) -> None:
    saved(published_size("official_small"), folder / "dinov2_vits14")
    assert load_checkpoint(vit_adapter_s(), "dinov2_vits14").path == Path("dinov2_vits14")
    assert server.requested == []


def test_name_of_another_size_is_told(
    server: Server, folder: Path, hub: Path, tmp_path: Path
) -> None:
    server.files[SMALL] = pth_bytes("official_small", tmp_path)
    with pytest.raises(
        CheckpointError, match=r"a DINOv2 ViT-S .*build the model with vit_adapter_s"
    ):
        load_checkpoint(tiny_model(), "dinov2_vits14")


def test_address_is_downloaded_once_and_apart_from_others_of_its_name(
    server: Server, folder: Path, hub: Path
) -> None:
    seeds = {"/a/model.safetensors": 1, "/b/model.safetensors": 2, "/c/x?download=true": 3}
    for path, seed in seeds.items():
        server.files[path] = save(as_hf(official(patch=16, seed=seed)))
    for _ in range(2):
        for path, seed in seeds.items():
            model = tiny_model()
            report = load_checkpoint(model, server.address + path)
            assert torch.equal(model.pos_embed, official(patch=16, seed=seed)["pos_embed"])
            assert report.path.parent == hub
    assert server.requested == list(seeds)
    assert [name.partition("_")[2] for name in names_in(hub)].count("model.safetensors") == 2


def test_address_may_be_a_path_and_pretrained(server: Server, folder: Path, hub: Path) -> None:
    server.files["/vit.pth"] = save(official(patch=16))
    # pathlib writes http:/HOST.
    model = tiny_model(pretrained=Path(f"{server.address}/vit.pth"))
    assert torch.equal(model.pos_embed, official(patch=16)["pos_embed"])


def test_address_of_an_official_file_is_that_of_its_name(
    server: Server, folder: Path, hub: Path, tmp_path: Path
) -> None:
    server.files[SMALL] = pth_bytes("official_small", tmp_path)
    for path in (server.address + SMALL, "dinov2_vits14"):
        assert load_checkpoint(vit_adapter_s(), path).path == hub / "dinov2_vits14_pretrain.pth"
    assert server.requested == [SMALL]


def test_address_may_hold_several_sets_of_weights(
    server: Server, folder: Path, hub: Path, tmp_path: Path
) -> None:
    content = {"model": official(seed=1), "teacher": official(seed=2)}
    server.files["/two.pth"] = saved(content, tmp_path / "two.pth").read_bytes()
    address = f"{server.address}/two.pth"
    with pytest.raises(CheckpointError, match="holds several state dicts"):
        load_checkpoint(tiny_model(), address)
    assert load_checkpoint(tiny_model(), address, prefer="teacher").taken == "teacher"


def test_what_is_no_checkpoint_is_refused_and_removed(
    server: Server, folder: Path, hub: Path, tmp_path: Path
) -> None:
    payload = {**official(), "payload": Payload(tmp_path / "mark")}
    files = {
        "/blob/model.safetensors": (b"<!doctype html>", "a web page, .*/resolve/"),
        "/empty.pth": (b"", "the file is empty"),
        "/list.pth": (saved([1, 2], tmp_path / "x.pth").read_bytes(), "holds one list"),
        "/cut.safetensors": (save(official())[:-9], "truncated"),
        "/payload.pth": (saved(payload, tmp_path / "y.pth").read_bytes(), "can run code"),
        "/index.json": (b"{}", "JSON text"),
    }
    for path, (content, reason) in files.items():
        server.files[path] = content
        address = server.address + path
        told = f"^{address} did not send a checkpoint: .*{reason}"
        with pytest.raises(CheckpointError, match=told):
            load_checkpoint(tiny_model(), address)
    with pytest.raises(CheckpointError, match="cannot download .*404"):
        load_checkpoint(tiny_model(), f"{server.address}/none.pth")
    assert (names_in(hub), (tmp_path / "mark").exists()) == ([], False)


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("s3://bucket/vit.pth", "wanted http:// or https://, or fetch the file with a tool for s3"),
        ("HF://facebook/dinov2-small", "^hf://facebook/dinov2-small: cannot be downloaded"),
        ("https://[/vit.pth", "not an address"),
        ("http://h/model-00001-of-00002.safetensors", "download the folder and give its path"),
        ("http://h/model.safetensors.index.json?x=1", "download the folder and give its path"),
    ],
)
def test_address_that_cannot_be_downloaded_is_told(address: str, told: str, hub: Path) -> None:
    with pytest.raises(CheckpointError, match=told):
        load_checkpoint(tiny_model(), address)


def test_hub_folder_that_cannot_be_made_is_told(hub: Path, tmp_path: Path) -> None:
    (tmp_path / "torch").touch()
    with pytest.raises(CheckpointError, match="the folder .* cannot be made: .*TORCH_HOME"):
        load_checkpoint(tiny_model(), "dinov2_vits14")
