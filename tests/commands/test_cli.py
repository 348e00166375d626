# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The command line: what it prints, writes, and returns, mostly with photos of 96 pixels."""

import builtins
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import vitadapter_fast
from vitadapter_fast.commands import cli

Image = pytest.importorskip("PIL.Image", reason="needs the [cli] extra")
pytest.importorskip("rich", reason="needs the [cli] extra")

from vitadapter_fast.commands.features import command as features  # noqa: E402
from vitadapter_fast.commands.features.photos import (  # noqa: E402
    Photo,
    packaged_photo,
    read_photo,
    to_tensor,
    unique_names,
)
from vitadapter_fast.commands.features.picture import layout  # noqa: E402
from vitadapter_fast.errors import CommandError  # noqa: E402

SMALL = ["--size", "96", "--device", "cpu", "--weights", "random"]


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VITADAPTER_BACKEND", raising=False)


def make_photo(path, size=(96, 64)):
    path.parent.mkdir(exist_ok=True)
    values = np.random.default_rng(sum(size)).integers(0, 255, (size[1] // 8, size[0] // 8, 3))
    image = Image.fromarray(values.astype(np.uint8)).resize(size)
    image.save(path)
    return image


def files_in(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_packaged_photo_gives_table_and_picture(tmp_path, capsys):
    assert cli.main(["features", *SMALL]) == 0
    out, err = capsys.readouterr()
    for expected in ("384 x 18 x 24", "384 x 9 x 12", "384 x 5 x 6", "384 x 3 x 3", "float32"):
        assert expected in out
    for expected in ("28.0 M", "images/s", "MiB", "warm-up", "features.png"):
        assert expected in out
    assert err == ""
    assert files_in(tmp_path) == ["features.png"]
    with Image.open("features.png") as picture:
        assert picture.size[0] == 1600
        pixels = np.asarray(picture.convert("RGB")).astype(float)
    panels, height = layout(72 / 96)
    assert height == pixels.shape[0]
    for left, top, width, panel_height in panels:
        assert width / panel_height == pytest.approx(4 / 3, rel=0.01)
        panel = pixels[top : top + panel_height, left : left + width]
        assert panel.std(axis=(0, 1)).max() > 10


def test_photo_license_is_packaged():
    with packaged_photo() as photo:
        text = photo.with_name("blood_cells_LICENSE.txt").read_text()
        assert text.startswith("MIT License")
        assert "BCCD" in photo.with_name("blood_cells.txt").read_text()


def test_no_weights_are_called_random(capsys):
    assert cli.main(["features", *SMALL]) == 0
    assert "random (seed 0): these are the features of an untrained" in capsys.readouterr().out


def test_vit_weights_leave_a_random_adapter(tmp_path, capsys):
    torch.manual_seed(1)
    model = vitadapter_fast.vit_adapter_s()
    prefixes = ("patch_embed.", "blocks.", "pos_embed")
    state = {name: t for name, t in model.state_dict().items() if name.startswith(prefixes)}
    state["cls_token"] = torch.zeros(1, 1, 384)
    save_file(state, "vit.safetensors")
    assert cli.main(["features", *SMALL, "--weights", "vit.safetensors"]) == 0
    out, err = capsys.readouterr()
    assert "the adapter is random (seed 0)" in " ".join(out.split())
    assert err.startswith("info: ")


def test_trained_weights_are_not_called_random(capsys):
    save_file(vitadapter_fast.vit_adapter_s().state_dict(), "trained.safetensors")
    assert cli.main(["features", *SMALL, "--weights", "trained.safetensors"]) == 0
    out = capsys.readouterr().out
    assert "trained.safetensors" in out
    assert "random" not in out


@pytest.mark.parametrize("batch", [1, 2])
def test_saved_maps_equal_the_models(tmp_path, batch):
    for name in ("a", "b"):
        make_photo(tmp_path / f"{name}.png", (96, 70))
    argv = ["features", "a.png", "b.png", *SMALL, "--save", "maps.safetensors", "--seed", "3"]
    assert cli.main([*argv, "--batch", str(batch)]) == 0
    torch.manual_seed(3)
    model = vitadapter_fast.vit_adapter_s().eval()
    saved = load_file("maps.safetensors")
    assert len(saved) == 8
    for name in ("a", "b"):
        pixels = read_photo(tmp_path / f"{name}.png", (96, 96))
        with torch.inference_mode():
            maps = model(to_tensor([Photo(name, pixels)]))
        for level, expected in enumerate(maps, start=1):
            torch.testing.assert_close(
                saved[f"{name}.level{level}"], expected, rtol=1e-3, atol=1e-3
            )
    with safe_open("maps.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["model"] == "vit_adapter_s"
    assert metadata["size"] == "96x96"
    assert metadata["weights"].startswith("random (seed 3)")


def test_folder_does_the_rest_around_a_broken_photo(tmp_path, capsys):
    folder = tmp_path / "photos"
    make_photo(folder / "a.png", (96, 64))
    (folder / "b.jpg").write_bytes(b"not a photo")
    make_photo(folder / "c.png", (64, 96))
    make_photo(folder / "d.png", (96, 64))
    (folder / "notes.txt").write_text("not listed as a photo")
    argv = ["features", "photos", "--out", "pictures", "--save", "maps.safetensors"]
    assert cli.main([*argv, *SMALL, "--batch", "2"]) == 1
    out, err = capsys.readouterr()
    assert err == f"error: {Path('photos/b.jpg')}: not a photo in a known format\n"
    assert "2 of 64 x 96" in out
    assert "1 of 96 x 64" in out
    assert files_in(tmp_path / "pictures") == ["a.png", "c.png", "d.png"]
    shapes = {name: tuple(t.shape) for name, t in load_file("maps.safetensors").items()}
    assert len(shapes) == 12
    assert shapes["a.level1"] == shapes["d.level1"] == (1, 384, 16, 24)
    assert shapes["c.level4"] == (1, 384, 3, 2)


def test_nothing_that_fails_stops_the_rest(tmp_path, capsys, monkeypatch):
    real = features._forward

    def forward(model, image, totals):
        if image.shape[2:] == (96, 64):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")
        return real(model, image, totals)

    monkeypatch.setattr(features, "_forward", forward)
    folder = tmp_path / "photos"
    make_photo(folder / "a.png", (64, 96))
    for name in ("b", "c"):
        make_photo(folder / f"{name}.png", (96, 64))
    (tmp_path / "empty").mkdir()
    (tmp_path / "pictures" / "b.png").mkdir(parents=True)
    argv = ["features", "gone.png", "empty", "photos", "--out", "pictures"]
    assert cli.main([*argv, *SMALL, "--save", "maps.safetensors"]) == 1
    out, err = capsys.readouterr()
    assert [line.split(":")[1].strip() for line in err.splitlines()] == [
        "empty",
        "gone.png",
        "a",
        str(Path("pictures/b.png")),
    ]
    assert "a: out of memory; lower --size" in err
    assert "2 of 4" in out and "1 in pictures" in out and "4, told below" in out
    assert {name.partition(".")[0] for name in load_file("maps.safetensors")} == {"b", "c"}


def test_error_that_ends_the_run_hides_none_before(tmp_path, capsys):
    make_photo(tmp_path / "a.png")
    argv = ["features", *SMALL, "gone.png", "a.png", "--weights", "gone.pth"]
    assert cli.main(argv) == 1
    errors = ["error: gone.png: no such file", "error: gone.pth: no such file"]
    assert capsys.readouterr().err.splitlines() == errors


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["gone.jpg"], "gone.jpg: no such file"),
        (["broken.jpg"], "broken.jpg: not a photo in a known format"),
        (["cut.png"], "cut.png: cannot be read"),
        (["empty"], "empty: no photos inside"),
        (["narrow.png"], "narrow.png: 10 x 510 is too narrow"),
        (["fine.png", "--out", "fine.png"], "fine.png is one of the inputs"),
        (["fine.png", "--out", "x.txt"], "--out x.txt: wanted a name that ends in"),
        (["fine.png", "--out", "gone/x.png"], "the folder gone does not exist"),
        (["fine.png", "cut.png", "--out", "x.png"], "--out x.png: wanted a folder"),
        (["fine.png", "--save", "x.pth"], "--save x.pth: wanted a file name"),
        (
            ["fine.png", "--save", "w.safetensors", "--weights", "w.safetensors"],
            "--save: w.safetensors is one of the inputs",
        ),
        (["n" * 300], "cannot be read: File name too long"),
        (["fine.png", "--weights", "gone.pth"], "gone.pth: no such file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_one_error_line(tmp_path, capsys, argv, message):
    (tmp_path / "broken.jpg").write_bytes(b"not a photo")
    (tmp_path / "empty").mkdir()
    make_photo(tmp_path / "fine.png")
    make_photo(tmp_path / "narrow.png", (510, 10))
    (tmp_path / "cut.png").write_bytes((tmp_path / "fine.png").read_bytes()[:200])
    before = files_in(tmp_path)
    assert cli.main(["features", *SMALL, *argv]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert files_in(tmp_path) == before


@pytest.mark.parametrize("name", ["model.safetensors", "part-1.safetensors"])
def test_maps_replace_no_file_of_the_weights(tmp_path, capsys, name):
    weights = tmp_path / "weights"
    weights.mkdir()
    save_file({"weight": torch.ones(2)}, weights / name)
    if name != "model.safetensors":
        index = {"weight_map": {"weight": name}}
        (weights / "model.safetensors.index.json").write_text(json.dumps(index))
    before = (weights / name).read_bytes()
    argv = ["--weights", "weights", "--save", f"weights/{name}"]
    assert cli.main(["features", *SMALL, *argv]) == 1
    told = f"--save: weights/{name} is one of the inputs and would be overwritten"
    assert told in capsys.readouterr().err
    assert (weights / name).read_bytes() == before


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_pipe_is_not_waited_for(tmp_path, capsys):
    os.mkfifo("pipe.png")
    make_photo(tmp_path / "fine.png")
    assert cli.main(["features", "pipe.png", "fine.png", *SMALL]) == 1
    assert capsys.readouterr().err == "error: pipe.png: a pipe or device; save it to a file first\n"
    assert files_in(tmp_path / "features") == ["fine.png"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_missing_cuda_device_is_an_error(capsys):
    assert cli.main(["features", "--device", "cuda"]) == 1
    assert "no CUDA device" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv", [["--size", "31"], ["--batch", "0"], ["--model", "x"]], ids=" ".join
)
def test_wrong_argument_exits_2(argv):
    with pytest.raises(SystemExit) as error:
        cli.main(["features", *argv])
    assert error.value.code == 2


def test_interrupt_exits_130_and_leaves_no_file(tmp_path, capsys, monkeypatch):
    def interrupted_save(image, path, *args):
        path.write_bytes(b"half a picture")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", interrupted_save)
    assert cli.main(["features", *SMALL]) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert files_in(tmp_path) == []


def test_missing_extra_names_the_remedy(capsys, monkeypatch):
    real = builtins.__import__

    def without_rich(name, *args, **kwargs):
        if name.partition(".")[0] == "rich":
            raise ModuleNotFoundError("No module named 'rich'", name=name)
        return real(name, *args, **kwargs)

    package = "vitadapter_fast.commands.features"
    for name in (package, f"{package}.command", f"{package}.report"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(builtins, "__import__", without_rich)
    assert cli.main(["features"]) == 1
    assert capsys.readouterr().err == (
        "error: this command needs rich: pip install 'vitadapter_fast[cli]'\n"
    )


def test_backend_of_each_op_is_named(capsys, monkeypatch):
    monkeypatch.setenv("VITADAPTER_BACKEND", "reference")
    assert cli.main(["features", *SMALL]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "patch_embed: reference, ms_deform_attn_grid: reference" in out
    monkeypatch.setenv("VITADAPTER_BACKEND", "abacus")
    assert cli.main(["features", *SMALL]) == 1
    assert "VITADAPTER_BACKEND must be one of" in capsys.readouterr().err


def test_skipped_backend_is_not_named(capsys, monkeypatch):
    module = sys.modules["vitadapter_fast.ops.ms_deform_attn"].BACKENDS[0]
    monkeypatch.setattr(module, "unsupported_reason", lambda *call: "the test says so")
    assert cli.main(["features", *SMALL]) == 0
    used = capsys.readouterr().out.partition("ms_deform_attn_grid: ")[2].split()[0]
    assert used != module.__name__.rpartition(".")[2]


def test_logger_is_as_before(capsys):
    logger = logging.getLogger("vitadapter_fast")
    before = (logger.level, logger.propagate, list(logger.handlers))
    assert cli.main(["features", "gone.jpg"]) == 1
    assert (logger.level, logger.propagate, list(logger.handlers)) == before


def test_module_runs_as_a_program():
    command = [sys.executable, "-m", "vitadapter_fast", "--help"]
    # The tree may be on a relative path, and this test runs in another folder.
    tree = str(Path(vitadapter_fast.__file__).resolve().parents[1])
    found = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": tree}
    )
    for name in ("features", "convert", "info"):
        assert name in found.stdout


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "YCbCr"])
def test_any_color_mode_gives_rgb(tmp_path, mode):
    suffix = "tif" if mode in ("CMYK", "YCbCr") else "png"
    path = tmp_path / f"photo.{suffix}"
    make_photo(tmp_path / "rgb.png").convert(mode).save(path)
    pixels = read_photo(path, (96, 96))
    assert pixels.shape == (64, 96, 3)
    assert pixels.std() > 10


def test_16_bit_photo_keeps_its_tones(tmp_path):
    values = np.tile(np.linspace(0, 65535, 96).astype(np.uint16), (96, 1))
    Image.fromarray(values).save(tmp_path / "deep.png")
    row = read_photo(tmp_path / "deep.png", (96, 96))[40, :, 1]
    np.testing.assert_allclose(row, np.linspace(0, 255, 96), atol=1.5)


def test_transparency_is_laid_on_white(tmp_path):
    Image.new("RGBA", (64, 64), (10, 20, 30, 0)).save(tmp_path / "clear.png")
    assert (read_photo(tmp_path / "clear.png", (64, 64)) == 255).all()


def test_exif_rotation_is_applied(tmp_path):
    image = Image.new("RGB", (96, 64), "blue")
    image.paste("red", (0, 0, 48, 64))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise by 90 degrees: the left half comes on top
    image.save(tmp_path / "turned.png", exif=exif)
    pixels = read_photo(tmp_path / "turned.png", (96, 96))
    assert pixels.shape == (96, 64, 3)
    assert pixels[:40, :, 0].min() > 200
    assert pixels[56:, :, 2].min() > 200


@pytest.mark.parametrize(
    ("size", "expected_hw"), [((100, 50), (48, 96)), ((30, 10), (32, 96)), ((200, 10), (32, 640))]
)
def test_resizing_keeps_proportions_and_32_pixels(tmp_path, size, expected_hw):
    Image.new("RGB", size).save(tmp_path / "photo.png")
    assert read_photo(tmp_path / "photo.png", (96, 96)).shape[:2] == expected_hw


def test_folder_is_no_photo(tmp_path):
    with pytest.raises(CommandError, match="cannot be read"):
        read_photo(tmp_path, (96, 96))


def test_equal_stems_get_numbers(tmp_path):
    paths = [tmp_path / name for name in ("a.jpg", "A.png", "x/a.jpg", "a-2.jpg", "b.jpg")]
    assert unique_names(paths) == ["a", "A-2", "a-3", "a-2-2", "b"]
