# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Names of any bytes and consoles of any encoding: no command ends in a traceback over them."""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_cases import official, saved
from export_cases import smallest, smallest_model

import vitadapter_fast
from vitadapter_fast.commands import cli, options
from vitadapter_fast.commands import convert as convert_command
from vitadapter_fast.commands.termination import any_text

Image = pytest.importorskip("PIL.Image", reason="needs the [cli] extra")
pytest.importorskip("rich", reason="needs the [cli] extra")
safetensors = pytest.importorskip("safetensors.torch")

from vitadapter_fast.commands.features.photos import printable, unique_names  # noqa: E402

NAMES = {
    "no_text": os.fsdecode(b"\xff\xe9"),
    "letters": "é → 写真",
    "newline": "two\nlines",
    "escape": "\x1b[31mred",
    "markup": "[bold]$x^2$[red]",
    "longest": "n" * 244,
}
ENCODINGS = ("utf-8", "cp1252", "latin-1", "ascii")


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(options, "vit_adapter", smallest)


def features(name: str, patch: pytest.MonkeyPatch) -> tuple[list[str], set[int]]:
    make_photo(f"{name}.png")
    with open(f"{name}.pth", "wb") as weights:
        torch.save(smallest_model().state_dict(), weights)
    argv = ["features", f"{name}.png", "gone →.png", "--size", "32", "--device", "cpu"]
    return [*argv, "--weights", f"{name}.pth", "--save", "maps.safetensors"], {1}


def train(name: str, patch: pytest.MonkeyPatch) -> tuple[list[str], set[int]]:
    return ["train", "--data", name], {1}  # there is no such folder


def detect(name: str, patch: pytest.MonkeyPatch) -> tuple[list[str], set[int]]:
    return ["detect", name, f"{name}.png"], {1}  # no such run


def convert(name: str, patch: pytest.MonkeyPatch) -> tuple[list[str], set[int]]:
    saved(official(), Path(f"{name}.pth"))
    # X.pth becomes X_14to16.pth, for which the longest has no room.
    return ["convert", f"{name}.pth", "--out", f"{name}.bin"], {0}


def export(name: str, patch: pytest.MonkeyPatch) -> tuple[list[str], set[int]]:
    from vitadapter_fast.commands import export
    from vitadapter_fast.export import Parity
    from vitadapter_fast.export._files import appearing

    def write(model: Any, path: Path, *args: Any, **options: Any) -> list[Parity]:
        with appearing(path) as part:
            part.write_bytes(b"graph")
        return [Parity((64, 64), (0.0,) * 4)]

    patch.setattr(export, "export_onnx", write)
    # The libraries that write it take text alone.
    status = 1 if name == NAMES["no_text"] else 0
    return ["export", "--format", "onnx", "--out", f"{name}.onnx"], {status}


def configs(name: str, patch: pytest.MonkeyPatch) -> tuple[list[str], set[int]]:
    return ["configs", name], {1}


def info(name: str, patch: pytest.MonkeyPatch) -> tuple[list[str], set[int]]:
    from vitadapter_fast.commands import info

    patch.setattr(info, "facts", lambda: {"extension": name})
    patch.setattr(info, "table", lambda: {"op": dict.fromkeys(info.NAMES, name)})
    return ["info"], {0}


def wrong_usage(name: str, patch: pytest.MonkeyPatch) -> tuple[list[str], set[int]]:
    return ["info", name], {2}


Case = Callable[[str, pytest.MonkeyPatch], tuple[list[str], set[int]]]
CASES: dict[str, Case] = {
    "features": features,
    "train": train,
    "detect": detect,
    "convert": convert,
    "export": export,
    "configs": configs,
    "info": info,
    "wrong_usage": wrong_usage,
}


def make_photo(path: str | Path, size: tuple[int, int] = (32, 32)) -> None:
    Image.new("RGB", size, "red").save(path, "PNG")


def test_every_command_has_a_case() -> None:
    assert set(CASES) == {*cli._COMMANDS, "wrong_usage"}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have names of text alone")
@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_any_name_goes_to_any_console(
    case: Case, encoding: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv, statuses = case(name, monkeypatch)
    streams = [io.TextIOWrapper(io.BytesIO(), encoding, errors="strict") for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    try:
        status = cli.main(argv)
    except SystemExit as stop:
        status = int(stop.code or 0)
    for stream in streams:
        stream.flush()
    out, err = (stream.buffer.getvalue().decode(encoding) for stream in streams)  # type: ignore[attr-defined]
    assert status in statuses, err
    assert "Traceback" not in err and "Logging error" not in err
    assert [stream.errors for stream in streams] == ["strict", "strict"]
    if case is features:
        maps = safetensors.load_file("maps.safetensors")
        assert sorted(maps) == [f"{printable(name)}.level{level}" for level in range(1, 5)]
        assert Path("features", f"{name}.png").stat().st_size > 1000
        assert "1 of 2" in out and "gone " in err


def test_script_of_the_conversion_takes_them_too(monkeypatch: pytest.MonkeyPatch) -> None:
    argv, statuses = convert(NAMES["letters"], monkeypatch)
    console = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", console)
    assert convert_command.main(argv[1:]) in statuses
    assert console.errors == "strict"


def test_names_that_print_alike_get_numbers() -> None:
    paths = [Path(os.fsdecode(b"\xff.png")), Path("\\udcff.png")]
    assert len({printable(name) for name in unique_names(paths)}) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have names of text alone")
@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "cp1252"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=["cp1252", "ascii_system"],
)
def test_process_takes_a_folder_of_any_names(environment: dict[str, str], tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path / "photos")
    os.mkdir(folder)
    for name in NAMES.values():
        make_photo(os.path.join(folder, os.fsencode(f"{name}.png")))  # type: ignore[arg-type]
    tree = str(Path(vitadapter_fast.__file__).resolve().parents[1])
    command = [sys.executable, "-m", "vitadapter_fast", "features", "photos", "gone.png"]
    options = ["--size", "32", "--device", "cpu", "--weights", "random"]
    done = subprocess.run(
        [*command, *options, "--save", "maps.safetensors"],
        capture_output=True,
        env={**os.environ, **environment, "PYTHONPATH": tree},
    )
    err = done.stderr.decode("latin-1")
    assert done.returncode == 1 and err == "error: gone.png: no such file\n"
    assert f"{len(NAMES)} of {len(NAMES) + 1}".encode() in done.stdout
    assert len(list(Path("features").iterdir())) == len(NAMES)
    assert len(safetensors.load_file("maps.safetensors")) == 4 * len(NAMES)


def test_process_without_stdout_runs() -> None:
    tree = str(Path(vitadapter_fast.__file__).resolve().parents[1])
    command = f"'{sys.executable}' -m vitadapter_fast configs >&- 2>&-"
    done = subprocess.run(command, shell=True, env={**os.environ, "PYTHONPATH": tree})
    assert done.returncode == 0


def test_streams_are_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), "ascii", errors="replace")
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", None)
    with any_text():
        sys.stdout.write("é")
        sys.stderr.write("é")
    assert stream.errors == "replace" and sys.stderr is None
    stream.flush()
    assert stream.buffer.getvalue() == b"\\xe9"  # type: ignore[attr-defined]
