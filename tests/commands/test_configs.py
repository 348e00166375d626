# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The command that finds packaged training configs; needs none of the frameworks."""

from pathlib import Path

import pytest

from vitadapter_fast.commands import cli
from vitadapter_fast.commands.configs import config_names, config_path

MASK_RCNN = [
    f"mask_rcnn_dinov2_adapter_{size}_fpn_3x_coco" for size in ("small", "base", "large", "giant")
]


@pytest.mark.parametrize("name", MASK_RCNN)
def test_each_recipe_is_there_for_mmdet_and_detectron2(name: str) -> None:
    assert {name, f"detectron2/{name}"} <= set(config_names())


def test_command_lists_every_config_with_a_summary(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["configs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[::2] == config_names()
    assert all(line.startswith("    ") and line.endswith(".") for line in lines[1::2])


def test_command_prints_the_path_of_one(capsys: pytest.CaptureFixture[str]) -> None:
    for name in config_names():
        assert cli.main(["configs", name]) == 0
        assert Path(capsys.readouterr().out.strip()) == config_path(name)
        assert config_path(name).is_file()


def test_unknown_name_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["configs", "mask_rcnn_adapter_small"]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert "no packaged config is named 'mask_rcnn_adapter_small'; nearest are" in told.err
    assert MASK_RCNN[0] in told.err


def test_bases_are_not_listed_but_lie_beside() -> None:
    assert not any("_base_/" in name for name in config_names())
    assert (config_path(MASK_RCNN[0]).parent / "_base_").is_dir()
