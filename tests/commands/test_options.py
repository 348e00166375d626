# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Options mean the same in every command, wrong values are told, examples of the help run."""

import argparse
import importlib
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_cases import published_size, saved
from export_cases import SMALLEST, smallest, smallest_model
from tiny import WINDOWED

from vitadapter_fast import ViTAdapter, images
from vitadapter_fast.commands import cli, configs
from vitadapter_fast.commands import export as export_command
from vitadapter_fast.commands import features as features_command
from vitadapter_fast.commands import options as shared
from vitadapter_fast.commands.features.photos import packaged_photo, read_photo
from vitadapter_fast.costs import cost
from vitadapter_fast.export import export_onnx, export_program, export_pt2

pytest.importorskip("rich", reason="needs the [cli] extra")
pytest.importorskip("onnxruntime", reason="needs the [export] extra")

HUGE = 10**30
NO_NUMBERS = ("x", "", "nan", "inf")
NO_SIZES = ("-1", "1.5", "1e3", str(HUGE), *NO_NUMBERS)


def options(name: str) -> dict[str, argparse.Action]:
    parser = argparse.ArgumentParser()
    importlib.import_module(f"vitadapter_fast.commands.{name}").add_arguments(parser)
    return {each.option_strings[0]: each for each in parser._actions if each.option_strings}


NUMERIC = {
    f"{name} {option}": (name, option, action)
    for name in cli._COMMANDS
    for option, action in options(name).items()
    if action.type not in (None, shared.given_path)
}
PATHS = {
    "convert": ["--out"],
    "detect": ["--out"],
    "export": ["--weights", "--out"],
    "features": ["--weights", "--out", "--save"],
    "train": ["--data", "--out", "--resume", "--weights"],
}
# Their zero says something.
WITH_ZERO = (
    *("detect --score", "features --range", "features --seed"),
    *(f"train --{name}" for name in ("ema", "jitter", "save-minutes", "seed", "weight-decay")),
    "train --workers",
)


def test_numeric_options_are_these() -> None:
    assert sorted(NUMERIC) == [
        "detect --score",
        "export --opset",
        "export --size",
        "features --batch",
        "features --range",
        "features --seed",
        "features --size",
        "info --batch",
        "info --size",
        "train --batch",
        "train --ema",
        "train --epochs",
        "train --jitter",
        "train --layer-decay",
        "train --lr",
        "train --save-minutes",
        "train --seed",
        "train --size",
        "train --weight-decay",
        "train --workers",
    ]


def test_options_with_paths_are_these() -> None:
    found = {
        name: [
            option for option, action in options(name).items() if action.type is shared.given_path
        ]
        for name in cli._COMMANDS
    }
    assert {name: names for name, names in found.items() if names} == PATHS


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("convert", "FILE"),
        ("detect", "RUN"),
        ("features", "PHOTO"),
        *((name, option) for name, names in PATHS.items() for option in names),
    ],
)
def test_empty_path_is_not_the_current_folder(
    name: str, argument: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [argument] if argument.startswith("--") else []
    with pytest.raises(SystemExit) as stop:
        cli.main([name, *given, ""])
    assert stop.value.code == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.endswith(f"argument {argument}: must be a path, got ''")


@pytest.mark.parametrize(
    ("low", "high"), [("-1e3", "5"), ("-1.5E+3", "-1e-3"), ("-.5e1", "-2.e-30"), ("-1000", "1e3")]
)
def test_range_takes_negative_numbers_in_any_notation(
    low: str, high: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranges = []
    monkeypatch.setattr(features_command, "run", lambda args: ranges.append(args.range) or 0)
    assert cli.main(["features", "--range", low, high]) == 0
    assert ranges == [[float(low), float(high)]]


def no_values(which: str) -> tuple[str, ...]:
    """What a numeric option refuses."""
    if which.endswith("--range"):
        return NO_NUMBERS
    is_real = NUMERIC[which][2].type.__qualname__.startswith(shared.number.__name__)  # type: ignore[union-attr]
    return ("-1", str(HUGE), *NO_NUMBERS) if is_real else NO_SIZES


WRONG = [(which, value) for which in NUMERIC for value in no_values(which)]


@pytest.mark.parametrize(("which", "value"), WRONG, ids=map(" ".join, WRONG))
def test_wrong_number_is_told(which: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    name, option, action = NUMERIC[which]
    required = ["--format", "onnx", "--out", "x.onnx"] if name == "export" else []
    with pytest.raises(SystemExit) as stop:
        cli.main([name, *required, option, *[value] * (action.nargs or 1)])  # type: ignore[operator]
    assert stop.value.code == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert f"argument {option}: must be " in told and repr(value) in told


@pytest.mark.parametrize("which", NUMERIC)
def test_zero_is_taken_where_it_says_something(which: str) -> None:
    _, _, action = NUMERIC[which]
    assert callable(action.type)
    if which in WITH_ZERO:
        assert action.type("0") == 0
    else:
        with pytest.raises(argparse.ArgumentTypeError):
            action.type("0")


def test_size_is_one_option() -> None:
    actions = [options(name)["--size"] for name in ("features", "info", "export", "train")]
    assert {action.type for action in actions} == {shared.image_size}
    assert {action.metavar for action in actions} == {"N|HxW"}
    assert len({str(action.help).partition(":")[0] for action in actions}) == 1
    assert shared.image_size("512") == (512, 512)
    assert shared.image_size("512x640") == (512, 640)


def test_size_is_height_by_width_in_features(tmp_path: Path) -> None:
    with packaged_photo() as photo:  # 480 high, 640 wide
        assert read_photo(photo, (96, 640)).shape == (96, 128, 3)
        assert read_photo(photo, (640, 96)).shape == (72, 96, 3)


def test_size_is_height_by_width_in_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", "--cost", "s", "--size", "64x96"]) == 0
    assert "64 x 96" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--size", "100x64"], "multiples of 32, got 100 x 64"),
        (["--size", "32"], "--size 32x32: sides are from 64 up unless --static"),
        (["--format", "pt2", "--opset", "20"], "are of --format onnx, got pt2"),
        (["--format", "pt2", "--onnx-mode", "gather"], "are of --format onnx, got pt2"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_no_export_takes_is_told(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["export", "--format", "onnx", "--out", "x.onnx", *arguments]) == 1
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("batch", [0, -1, 1.5, True, HUGE], ids=str)
def test_batch_of_no_images_is_told_from_python(batch: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="batch must be a whole number"):
        cost(ViTAdapter(**WINDOWED), 64, batch)
    if batch == HUGE:
        return
    for export, suffix in ((export_onnx, "onnx"), (export_pt2, "pt2")):
        with pytest.raises(ValueError, match="export: batch must be a whole number, at least 1"):
            export(smallest_model(), tmp_path / f"model.{suffix}", (64, 64), batch=batch)  # type: ignore[operator]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [(64,), (64.0, 64), (0, 64), (-32, 64), (100, 64), 64, (True, 64)])
def test_wrong_image_size_is_told_from_python(size: Any) -> None:
    with pytest.raises(ValueError, match="export: image_size must be"):
        export_program(smallest_model(), size)


@pytest.mark.parametrize("size", [(64,), (64.0, 64), 31, (64, HUGE), 64.5, True])
def test_wrong_image_size_of_costs_is_told(size: Any) -> None:
    with pytest.raises(ValueError, match="cost: image_size must be"):
        cost(ViTAdapter(**WINDOWED), size)


@pytest.mark.parametrize("sizes", [[], [(32, 64)]], ids=str)
def test_sizes_that_a_dynamic_file_does_not_take_are_told(sizes: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="export: check_sizes must be one or more"):
        export_onnx(smallest_model(), tmp_path / "model.onnx", check_sizes=sizes)


def test_largest_image_and_batch_have_a_cost() -> None:
    with torch.device("meta"):
        model = ViTAdapter(**SMALLEST)
    assert cost(model, images.MAX_SIZE, images.MAX_BATCH).total.flops > 0


# Those of detectors run in integrations/test_train.py: they need torchvision.
@pytest.mark.parametrize("name", sorted(cli._COMMANDS.keys() - {"train", "detect"}))
def test_example_of_the_help_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main([name, "--help"])
    (line,) = re.findall(r"^  python -m vitadapter_fast (.+)$", capsys.readouterr().out, re.M)
    monkeypatch.chdir(tmp_path)
    saved(published_size("official_small"), tmp_path / "dinov2_vits14_pretrain.pth")
    (tmp_path / "photos").mkdir()
    with packaged_photo() as photo:
        shutil.copy(photo, tmp_path / "photos")

    def write(model: Any, path: Path, *args: Any, **named: Any) -> list[Any]:
        path.write_bytes(b"graph")
        return []

    # It takes minutes, and has tests of its own.
    monkeypatch.setattr(export_command, "export_onnx", write)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(shlex.split(line)) == 0, capsys.readouterr().err
    made = {path.name for path in tmp_path.iterdir()} - {"dinov2_vits14_pretrain.pth", "photos"}
    assert (
        made
        == {
            "features": {"pictures", "maps.safetensors"},
            "convert": {"dinov2_vits14_pretrain_14to16.pth"},
            "export": {"s.onnx"},
            "configs": set(),
            "info": set(),
        }[name]
    )


def test_help_of_all_names_one_that_needs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    out = capsys.readouterr().out
    assert re.findall(r"^  python -m vitadapter_fast (.+)$", out, re.M) == ["features"]


def test_example_names_a_packaged_config() -> None:
    assert cli._COMMANDS["configs"].example in configs.config_names()


def test_memory_that_runs_out_of_an_export_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: Any, **named: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(export_command, "export_onnx", fail)
    monkeypatch.setattr(shared, "vit_adapter", smallest)
    assert cli.main(["export", "--format", "onnx", "--out", "x.onnx"]) == 1
    assert capsys.readouterr().err == (
        "error: x.onnx: out of memory; lower --size, or take a smaller --model\n"
    )


@pytest.mark.parametrize("name", ["features", "export"])
def test_weights_of_a_segmentor_have_a_model(name: str) -> None:
    parser = argparse.ArgumentParser()
    importlib.import_module(f"vitadapter_fast.commands.{name}").add_arguments(parser)
    required = ["--format", "onnx", "--out", "x.onnx"] if name != "features" else []
    args = parser.parse_args([*required, "--vit-features", "stages"])
    with torch.device("meta"):
        assert shared.model_of(args).vit_features == "stages"
