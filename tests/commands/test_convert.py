# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The 14 to 16 conversion writes what the original's converter writes, or nothing."""

import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from checkpoint_cases import (
    KEY_LISTS,
    Payload,
    as_hf,
    as_timm,
    assert_same,
    official,
    published_size,
    saved,
    tiny_model,
    vit_shapes,
    with_registers,
)
from folders import names_in
from safetensors.torch import load_file
from torch import Tensor

from vitadapter_fast.commands.convert import main
from vitadapter_fast.weights import files, load_checkpoint, resample_patch_kernel

SCRIPT = Path(__file__).parents[2] / "convert_14to16.py"


def converted_by_the_original(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What detection/convert_14to16.py of czczup/ViT-Adapter makes of official tensors."""
    resized = F.interpolate(
        tensors["patch_embed.proj.weight"], size=(16, 16), mode="bilinear", align_corners=False
    )
    return {
        re.sub(r"ls([12])\.gamma", r"gamma\1", name): (
            resized if name == "patch_embed.proj.weight" else tensor
        )
        for name, tensor in tensors.items()
        if "mask_token" not in name
    }


def load(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return load_file(path)
    tensors: dict[str, Tensor] = torch.load(path, weights_only=True)
    return tensors


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """An official file alone in a folder."""
    (tmp_path / "in").mkdir()
    return saved(official(), tmp_path / "in" / "vit.pth")


@pytest.mark.parametrize("has_registers", [False, True], ids=["plain", "registers"])
def test_default_conversion_is_bit_equal_to_the_original(
    has_registers: bool, tmp_path: Path
) -> None:
    tensors = with_registers(official()) if has_registers else official()
    assert main([str(saved(tensors, tmp_path / "vit.pth"))]) == 0
    assert_same(load(tmp_path / "vit_14to16.pth"), converted_by_the_original(tensors))


def test_default_conversion_keeps_the_original_order(source: Path) -> None:
    main([str(source)])
    wanted = list(converted_by_the_original(official()))
    assert list(load(source.with_name("vit_14to16.pth"))) == wanted


@pytest.mark.parametrize("name", sorted(name for name in KEY_LISTS if "giant" not in name))
def test_published_file_of_every_format_converts(name: str, tmp_path: Path) -> None:
    assert main([str(saved(published_size(name), tmp_path / "vit.pth"))]) == 0
    shapes = {key: tuple(tensor.shape) for key, tensor in load(tmp_path / "vit_14to16.pth").items()}
    C = shapes["norm.bias"][0]
    depth = 24 if C == 1024 else 12
    wanted = vit_shapes(C, depth, 4 * C, False, num_positions=1370, patch=16)
    wanted |= {"cls_token": (1, 1, C), "norm.weight": (C,), "norm.bias": (C,)}
    if "reg4" in name:
        wanted["register_tokens"] = (1, 4, C)
    assert shapes == wanted


@pytest.mark.parametrize("is_swiglu", [False, True], ids=["mlp", "swiglu"])
@pytest.mark.parametrize("naming", [as_hf, as_timm])
def test_other_namings_convert_to_the_same_weights(
    naming: Any, is_swiglu: bool, tmp_path: Path
) -> None:
    tensors = official(is_swiglu=is_swiglu)
    main([str(saved(naming(tensors), tmp_path / "vit.pth"))])
    assert_same(load(tmp_path / "vit_14to16.pth"), converted_by_the_original(tensors))


def test_method_pi_resizes_by_the_pseudo_inverse(source: Path) -> None:
    main([str(source), "--method", "pi"])
    name = "patch_embed.proj.weight"
    wanted = resample_patch_kernel(official()[name], 16, "pi")
    assert torch.equal(load(source.with_name("vit_14to16.pth"))[name], wanted)


def test_safetensors_stay_safetensors(tmp_path: Path) -> None:
    main([str(saved(official(), tmp_path / "model.safetensors"))])
    wanted = converted_by_the_original(official())
    assert_same(load(tmp_path / "model_14to16.safetensors"), wanted)


def test_converted_file_loads_into_the_model(source: Path) -> None:
    main([str(source)])
    report = load_checkpoint(tiny_model(), source.with_name("vit_14to16.pth"))
    assert (report.format, report.resized) == ("converted", None)


def test_input_is_not_touched(source: Path) -> None:
    before, modified_ns = source.read_bytes(), source.stat().st_mtime_ns
    main([str(source)])
    assert (source.read_bytes(), source.stat().st_mtime_ns) == (before, modified_ns)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_output_has_the_permissions_of_a_new_file(suffix: str, tmp_path: Path) -> None:
    path = saved(official(), tmp_path / f"vit{suffix}")
    (tmp_path / "new").touch()
    main([str(path)])
    mode = (tmp_path / f"vit_14to16{suffix}").stat().st_mode
    assert stat.S_IMODE(mode) == stat.S_IMODE((tmp_path / "new").stat().st_mode)


def test_existing_output_is_replaced(source: Path) -> None:
    target = source.with_name("vit_14to16.pth")
    target.write_bytes(b"old")
    assert main([str(source)]) == 0
    assert "gamma1" in "".join(load(target))


def test_out_names_a_file(source: Path, tmp_path: Path) -> None:
    assert main([str(source), "--out", str(tmp_path / "x.pth")]) == 0
    assert_same(load(tmp_path / "x.pth"), converted_by_the_original(official()))


def test_out_names_a_folder(source: Path, tmp_path: Path) -> None:
    assert main([str(source), "--out", str(tmp_path)]) == 0
    assert (tmp_path / "vit_14to16.pth").is_file()


def test_several_files_go_to_one_folder(source: Path, tmp_path: Path) -> None:
    other = saved(official(seed=2), tmp_path / "other.pth")
    (tmp_path / "out").mkdir()
    assert main([str(source), str(other), "--out", str(tmp_path / "out")]) == 0
    assert names_in(tmp_path / "out") == ["other_14to16.pth", "vit_14to16.pth"]


def test_results_are_told_on_stdout(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(source)])
    assert capsys.readouterr().out == f"{source} -> {source.with_name('vit_14to16.pth')}\n"


def test_script_converts(source: Path) -> None:
    subprocess.run([sys.executable, SCRIPT, source], check=True, cwd=SCRIPT.parent)
    wanted = converted_by_the_original(official())
    assert_same(load(source.with_name("vit_14to16.pth")), wanted)


def errors_of(arguments: list[Any], capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Lines on stderr of a conversion that must fail."""
    assert main([str(argument) for argument in arguments]) == 1
    return capsys.readouterr().err.splitlines()


def bad_pth(path: Path, kind: str) -> Path:
    content = saved(official(), path).read_bytes()
    if kind == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "foreign":
        saved({"conv1.weight": torch.ones(1)}, path)
    elif kind == "payload":
        saved({**official(), "payload": Payload(path.with_name("mark"))}, path)
    elif kind == "wrong_size":
        saved({**official(), "blocks.1.attn.proj.weight": torch.ones(3, 3)}, path)
    elif kind == "part_of_a_vit":
        saved({name: t for name, t in official().items() if "attn" not in name}, path)
    elif kind == "patch_16":
        saved(official(patch=16), path)
    elif kind == "patch_8":
        saved(official(patch=8), path)
    elif kind == "converted":
        saved(converted_by_the_original(official()), path)
    elif kind == "trained":
        saved({"state_dict": tiny_model().state_dict()}, path)
    elif kind == "missing":
        path.unlink()
    return path


BAD = {
    "truncated": "truncated",
    "empty": "the file is empty",
    "foreign": "not a DINOv2, DINOv3 or ViT-Adapter checkpoint",
    "payload": "can run code",
    "wrong_size": r"blocks\.1\.attn\.proj\.weight \(3, 3\) for \(32, 32\)",
    "part_of_a_vit": r"not a DINOv2 checkpoint: missing: blocks\.0\.attn\.qkv\.weight",
    "patch_16": "already has patch size 16",
    "patch_8": r"wanted patch size 14, got \(8, 8\)",
    "converted": "already converted",
    "trained": "needs no conversion",
    "missing": "no such file",
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_gives_one_error(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = bad_pth(tmp_path / "vit.pth", kind)
    (line,) = errors_of([path], capsys)
    assert re.match(rf"error: {re.escape(str(path))}: .*{BAD[kind]}", line)


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_leaves_no_file(kind: str, tmp_path: Path) -> None:
    path = bad_pth(tmp_path / "vit.pth", kind)
    before = names_in(tmp_path)
    main([str(path)])
    assert names_in(tmp_path) == before


def test_unknown_names_in_an_official_file_are_kept(tmp_path: Path) -> None:
    tensors = official() | {"extra.weight": torch.ones(2)}
    main([str(saved(tensors, tmp_path / "vit.pth"))])
    assert_same(load(tmp_path / "vit_14to16.pth"), converted_by_the_original(tensors))


@pytest.mark.parametrize("naming", [as_hf, as_timm])
def test_unknown_names_in_another_format_are_refused(
    naming: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = naming(official()) | {"extra.weight": torch.ones(2)}
    (line,) = errors_of([saved(tensors, tmp_path / "vit.pth")], capsys)
    assert line.endswith("not a DINOv2 checkpoint: unexpected: extra.weight")


def test_one_bad_file_does_not_stop_the_others(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = [bad_pth(tmp_path / f"{kind}.pth", kind) for kind in ("empty", "foreign")]
    lines = errors_of([bad[0], source, bad[1]], capsys)
    assert [line.split(": ")[1] for line in lines] == [str(path) for path in bad]
    assert source.with_name("vit_14to16.pth").is_file()


def test_output_onto_an_input_is_refused(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = source.read_bytes()
    (line,) = errors_of([source, "--out", source], capsys)
    assert "onto the input" in line
    assert source.read_bytes() == before


def test_output_onto_another_input_is_refused(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = saved(official(), source.with_name("vit_14to16.pth"))
    before = other.read_bytes()
    assert "onto the input" in errors_of([source, other], capsys)[0]
    assert other.read_bytes() == before


def test_two_inputs_with_one_output_are_refused(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = saved(official(seed=2), tmp_path / "vit.pth")
    (line,) = errors_of([source, other, "--out", tmp_path], capsys)
    assert "another input was already written to" in line
    assert_same(load(tmp_path / "vit_14to16.pth"), converted_by_the_original(official()))


def test_missing_output_folder_is_told(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (line,) = errors_of([source, "--out", tmp_path / "none" / "x.pth"], capsys)
    assert f"the output folder {tmp_path / 'none'} does not exist" in line


def test_address_is_told_what_takes_it(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = errors_of(["https://host/vit.pth", source], capsys)
    assert "an address; download the file and give its path, or give the address to load" in line
    assert source.with_name("vit_14to16.pth").is_file()


def test_several_files_need_a_folder(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (line,) = errors_of([source, source, "--out", tmp_path / "x.pth"], capsys)
    assert "wanted an existing folder for several files" in line


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes anywhere")
def test_unwritable_output_folder_is_told(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source.parent.chmod(0o555)
    (line,) = errors_of([source], capsys)
    assert "Permission denied" in line


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no /proc")
def test_folder_that_takes_no_files_is_told(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (line,) = errors_of([source, "--out", "/proc/self/x.pth"], capsys)
    assert "/proc/self/x.pth: cannot be written: " in line


LIMITED = """
import resource, sys
from vitadapter_fast.commands.convert import main
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no file size limits")
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_full_disk_gives_one_error_and_leaves_no_file(suffix: str, tmp_path: Path) -> None:
    path = saved(official(), tmp_path / f"vit{suffix}")
    result = subprocess.run(
        [sys.executable, "-c", LIMITED, path], capture_output=True, text=True, cwd=SCRIPT.parent
    )
    target = path.with_name(f"vit_14to16{suffix}")
    assert result.returncode == 1
    assert re.fullmatch(rf"error: {target}: cannot be written: .*File too large.*\n", result.stderr)
    assert names_in(tmp_path) == [path.name]


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8", "utf-16"])
def test_names_that_the_console_cannot_write_stop_nothing(encoding: str, tmp_path: Path) -> None:
    bad = "Gewichte_\u6a21\u578b.pth", os.fsdecode(b"weights_\xff.pth")
    paths = [
        saved(official(), tmp_path / f"{index}.pth").rename(tmp_path / name)
        for index, name in enumerate((*bad, "plain.pth"))
    ]
    environment = {**os.environ, "PYTHONIOENCODING": f"{encoding}:strict"}
    command = [sys.executable, SCRIPT, paths[0], tmp_path / "none_\u6a21.pth", *paths[1:]]
    done = subprocess.run(command, capture_output=True, env=environment, cwd=SCRIPT.parent)
    assert done.returncode == 1
    out, err = (text.decode(encoding) for text in (done.stdout, done.stderr))
    assert (out.count(" -> "), err.count("error: "), "Traceback" in err) == (3, 1, False)
    assert f"{paths[2]} -> {tmp_path / 'plain_14to16.pth'}" in out
    assert all(path.with_name(f"{path.stem}_14to16.pth").is_file() for path in paths)


def interrupt(*args: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("moment", ["while_saving", "before_replacing"])
def test_interrupt_leaves_the_old_output_alone(
    moment: str, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.with_name("vit_14to16.pth").write_bytes(b"old")
    if moment == "while_saving":
        monkeypatch.setattr(files.torch, "save", interrupt)
    else:
        monkeypatch.setattr(os, "replace", interrupt)
    assert main([str(source)]) == 130
    assert names_in(source.parent) == ["vit.pth", "vit_14to16.pth"]
    assert source.with_name("vit_14to16.pth").read_bytes() == b"old"
