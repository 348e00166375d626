# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""`features` downloads the small model by itself, or says why not and goes on."""

import re
from pathlib import Path

import pytest
from checkpoint_cases import published_size, saved
from download_server import SMALL, Server, pth_bytes
from folders import names_in

from vitadapter_fast.commands import cli


def text(capsys: pytest.CaptureFixture[str]) -> str:
    """What was printed, without what breaks its lines."""
    return "".join(capsys.readouterr().out.split())


FEATURES = ["features", "--size", "64", "--device", "cpu"]


def test_features_fetch_the_small_model_by_themselves(
    server: Server, folder: Path, hub: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.files[SMALL] = pth_bytes("official_small", tmp_path)
    for requests in (2, 2):  # one to see whether the server answers
        assert cli.main(FEATURES) == 0
        assert "dinov2_vits14_pretrain.pth(official):ViTonly" in text(capsys)
        assert server.requested == [SMALL] * requests
    assert names_in(hub) == ["dinov2_vits14_pretrain.pth"]


@pytest.mark.parametrize("model", ["s", "b"])
def test_features_without_a_network_say_so_and_go_on(
    model: str, server: Server, folder: Path, hub: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*FEATURES, "--model", model]) == 0
    out, err = capsys.readouterr()
    assert "random (seed 0)" in out
    assert err.count("\n") == 1
    told = "cannot reach .*: HTTP Error 404" if model == "s" else "--weights dinov2_vitb14 does it"
    assert re.search(f"warning: weights are random: dinov2_vit{model}14.*{told}", err)
    assert server.requested == ([SMALL] if model == "s" else [])
    assert not hub.exists()


def test_features_take_what_was_downloaded_before(
    server: Server, folder: Path, hub: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.mkdir(parents=True)
    saved(published_size("official_small"), hub / "dinov2_vits14_pretrain.pth")
    assert cli.main(FEATURES) == 0
    assert "dinov2_vits14_pretrain.pth(official)" in text(capsys)
    assert cli.main([*FEATURES, "--weights", "random"]) == 0
    assert "random (seed 0)" in capsys.readouterr().out
    assert server.requested == []
