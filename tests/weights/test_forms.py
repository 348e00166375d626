# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints load whatever their files are called, in one file, a folder or shards."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_cases import as_hf, assert_same, official, saved, tiny_model
from safetensors.torch import save, save_file
from torch import Tensor

from vitadapter_fast import CheckpointError
from vitadapter_fast.commands.convert import main
from vitadapter_fast.weights import load_checkpoint, read_checkpoint
from vitadapter_fast.weights.files import write_checkpoint

TENSORS = official(patch=16)
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def write_safetensors(tensors: dict[str, Tensor], path: Path) -> None:
    path.write_bytes(save(tensors))


def write_zip(tensors: dict[str, Tensor], path: Path) -> None:
    with path.open("wb") as file:
        torch.save(tensors, file)


def write_old(tensors: dict[str, Tensor], path: Path) -> None:
    with path.open("wb") as file:
        torch.save(tensors, file, _use_new_zipfile_serialization=False)


def write_index(tensors: dict[str, Tensor], path: Path, suffix: str = ".safetensors") -> None:
    """An index with two shards beside it."""
    names = list(tensors)
    first, second = (shard.replace(".safetensors", suffix) for shard in SHARDS)
    write = write_safetensors if suffix == ".safetensors" else write_zip
    write({name: tensors[name] for name in names[:20]}, path.with_name(first))
    write({name: tensors[name] for name in names[20:]}, path.with_name(second))
    places = {name: first if name in names[:20] else second for name in names}
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))


FORMATS: dict[str, Callable[[dict[str, Tensor], Path], None]] = {
    "safetensors": write_safetensors,
    "zip": write_zip,
    "old": write_old,
    "index": write_index,
}
NAMES = {
    "pth": "vit.pth",
    "pt": "vit.pt",
    "bin": "pytorch_model.bin",
    "safetensors": "model.safetensors",
    "json": "model.safetensors.index.json",
    "no suffix": "weights",
    "blob": "b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9",
    "dots": "vit.epoch.3.",
    "hidden": ".pth",
    "hidden safetensors": ".safetensors",
    "spaces": " my weights .pth",
    "newline": "my\nweights.pth",
    "unicode": "Gewichte_\u6a21\u578b_\U0001f916.pth",
    "long": "w" * 250,
    "no utf-8": os.fsdecode(b"gewichte_\xff\xfe.pth"),
    "no utf-8, no suffix": os.fsdecode(b"\xe4"),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("format", FORMATS)
def test_format_is_told_by_content_and_never_by_name(
    format: str, name: str, tmp_path: Path
) -> None:
    path = tmp_path / NAMES[name]
    FORMATS[format](TENSORS, path)
    assert_same(read_checkpoint(path), TENSORS)
    assert_same(read_checkpoint(os.fspath(path)), TENSORS)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("content", [b"", b"\x80", b"{}", b"<html>", b"\x08" + bytes(7) + b"{"])
def test_what_is_no_checkpoint_gives_one_error_under_every_name(
    content: bytes, name: str, tmp_path: Path
) -> None:
    path = tmp_path / NAMES[name]
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("name", NAMES)
def test_conversion_takes_and_writes_every_name(name: str, tmp_path: Path) -> None:
    path = tmp_path / NAMES[name]
    if name == "long":
        path = path.with_name("w" * 200)
    write_safetensors(official(), path)
    (tmp_path / "out").mkdir()
    assert main([str(path), "--out", str(tmp_path / "out")]) == 0
    (target,) = (tmp_path / "out").iterdir()
    assert "blocks.0.gamma1" in read_checkpoint(target)


@pytest.mark.parametrize("name", NAMES)
def test_checkpoint_is_written_under_every_name(name: str, tmp_path: Path) -> None:
    path = tmp_path / NAMES[name]
    if name == "long":
        path = path.with_name("w" * 200)
    write_checkpoint(TENSORS, path)
    assert_same(read_checkpoint(path), TENSORS)


def test_header_that_begins_as_json_does_is_safetensors(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}})
    # 123 is the code of "{", and no multiple of 8, to which most writers round.
    content = (123).to_bytes(8, "little") + header.ljust(123).encode() + bytes(4)
    (tmp_path / "file").write_bytes(content)
    assert_same(read_checkpoint(tmp_path / "file"), {"a": torch.zeros(1)})


def test_web_page_is_told(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\n<!DOCTYPE html><html>")
    with pytest.raises(CheckpointError, match="a web page, not a checkpoint; fetch the file"):
        read_checkpoint(tmp_path / "model.safetensors")


def folder_of(kind: str, folder: Path) -> Path:
    """A folder as transformers saves it."""
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "dinov2"}')
    tensors = as_hf(TENSORS)
    if kind == "safetensors":
        save_file(tensors, folder / "model.safetensors")
    elif kind == "bin":
        torch.save(tensors, folder / "pytorch_model.bin")
    elif kind == "safetensors shards":
        write_index(tensors, folder / "model.safetensors.index.json")
    else:
        write_index(tensors, folder / "pytorch_model.bin.index.json", ".bin")
    return folder


KINDS = ("safetensors", "bin", "safetensors shards", "bin shards")


@pytest.mark.parametrize("kind", KINDS)
def test_folder_of_hugging_face_loads(kind: str, tmp_path: Path) -> None:
    folder = folder_of(kind, tmp_path / "dinov2-tiny")
    assert_same(read_checkpoint(folder), as_hf(TENSORS))
    report = load_checkpoint(tiny_model(), folder)
    assert (report.format, report.path.parent) == ("hf", folder)


@pytest.mark.parametrize("kind", KINDS)
def test_folder_of_links_into_a_cache_loads(kind: str, tmp_path: Path) -> None:
    """As huggingface_hub lays it out: names in snapshots/ that point to blobs without suffix."""
    folder = folder_of(kind, tmp_path / "snapshot")
    (tmp_path / "blobs").mkdir()
    for index, path in enumerate(sorted(folder.iterdir())):
        shutil.move(path, tmp_path / "blobs" / f"{index:064x}")
        path.symlink_to(Path("..") / "blobs" / f"{index:064x}")
    assert_same(read_checkpoint(folder), as_hf(TENSORS))


def test_folder_with_the_weights_twice_names_what_is_left(tmp_path: Path) -> None:
    folder = folder_of("safetensors", tmp_path / "twice")
    torch.save(as_hf(TENSORS), folder / "pytorch_model.bin")
    report = load_checkpoint(tiny_model(), folder)
    assert (report.path, report.left) == (folder / "model.safetensors", ("pytorch_model.bin",))


@pytest.mark.parametrize("kind", KINDS)
def test_conversion_of_a_folder_lies_beside_its_weights(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "dinov2"
    folder.mkdir()
    suffix = ".bin" if "bin" in kind else ".safetensors"
    stem = "pytorch_model" if "bin" in kind else "model"
    if "shards" in kind:
        write_index(official(), folder / f"{stem}{suffix}.index.json", suffix)
    else:
        (write_zip if suffix == ".bin" else write_safetensors)(
            official(), folder / f"{stem}{suffix}"
        )
    assert main([str(folder)]) == 0
    assert load_checkpoint(tiny_model(), folder / f"{stem}_14to16{suffix}").format == "converted"


@pytest.mark.parametrize("index", [0, 1])
def test_conversion_onto_a_shard_of_an_input_is_refused(
    index: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_index(official(), tmp_path / "model.safetensors.index.json")
    shard = tmp_path / SHARDS[index]
    before = shard.read_bytes()
    for source in (tmp_path, tmp_path / "model.safetensors.index.json"):
        assert main([str(source), "--out", str(shard)]) == 1
        assert "onto the input" in capsys.readouterr().err
    assert shard.read_bytes() == before


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (None, "a directory without model.safetensors or .*; give the file itself"),
        ("snapshots/", "of a Hugging Face cache give one of the folders in snapshots/"),
        (".metadata", "format_utils dcp_to_torch"),
        ("weights.pth", "give the file itself"),
    ],
)
def test_folder_without_known_weights_is_told(made: str | None, told: str, tmp_path: Path) -> None:
    if made and made.endswith("/"):
        (tmp_path / made).mkdir()
    elif made:
        (tmp_path / made).touch()
    with pytest.raises(CheckpointError, match=told):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("shard", SHARDS)
@pytest.mark.parametrize("has_index", [True, False])
def test_lone_shard_names_the_index_to_load(shard: str, has_index: bool, tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    write_index(TENSORS, index)
    if not has_index:
        content = index.read_bytes()
        index.unlink()
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tiny_model(), tmp_path / shard)
    assert "one of 2 shards" in str(caught.value)
    assert str(caught.value).endswith(f"load {index}")
    if not has_index:
        index.write_bytes(content)
    assert load_checkpoint(tiny_model(), index).loaded == 59


def test_shard_of_another_name_is_known_by_the_index(tmp_path: Path) -> None:
    tensors = list(TENSORS)
    places = {name: "a" if name in tensors[:9] else "b" for name in tensors}
    write_zip({name: TENSORS[name] for name in tensors[:9]}, tmp_path / "a")
    (tmp_path / "x.index.json").write_text(json.dumps({"weight_map": places}))
    with pytest.raises(CheckpointError, match="a: one of 2 shards; load .*x.index.json"):
        read_checkpoint(tmp_path / "a")


def test_one_shard_of_one_is_whole(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model-00001-of-00001.safetensors")
    assert_same(read_checkpoint(tmp_path / "model-00001-of-00001.safetensors"), TENSORS)


def damage(index: Path, kind: str) -> None:
    content: Any = json.loads(index.read_text())
    places = content["weight_map"]
    first = next(iter(places))
    if kind == "missing shard":
        (index.parent / SHARDS[1]).unlink()
    elif kind == "cut shard":
        shard = index.parent / SHARDS[1]
        shard.write_bytes(shard.read_bytes()[:-9])
    elif kind == "shard of another kind":
        torch.save([1, 2], index.parent / SHARDS[1])
    elif kind == "shard that is an index":
        (index.parent / SHARDS[1]).write_text(index.read_text())
    elif kind == "shard without a tensor":
        places["extra"] = SHARDS[0]
    elif kind == "tensor in two shards":
        shutil.copy(index.parent / SHARDS[0], index.parent / SHARDS[1])
        for name in places:
            places[name] = SHARDS[0] if name in list(places)[:20] else SHARDS[1]
        content["weight_map"] = {n: s for n, s in places.items() if s == SHARDS[0]}
        content["weight_map"][first] = SHARDS[1]
    elif kind == "no map":
        content = {"model_type": "dinov2"}
    elif kind == "empty map":
        content["weight_map"] = {}
    elif kind == "map that is a list":
        content["weight_map"] = list(places)
    elif kind == "number for a shard":
        places[first] = 3
    else:
        places[first] = {
            "parent": "../other/model.safetensors",
            "absolute": "/etc/passwd",
            "drive": "C:/model.safetensors",
            "backslash": "..\\model.safetensors",
            "folder": ".",
            "empty": "",
            "null": "a\0b",
        }[kind]
    index.write_text(json.dumps(content))


DAMAGED = {
    "missing shard": "1 of its 2 shards are missing in .*model-00002-of-00002.*fetch them",
    "cut shard": "model-00002-of-00002.safetensors: truncated",
    "shard of another kind": "its shard .* holds one list",
    "shard that is an index": "model-00002-of-00002.safetensors: JSON text, not a checkpoint",
    "shard without a tensor": "its shard model-00001-of-00002.safetensors does not hold extra;",
    "tensor in two shards": "two of its shards hold .*cls_token",
    "no map": "JSON text without a weight_map, so no index of shards; give the file",
    "empty map": "names no tensors",
    "map that is a list": "names no tensors",
    "number for a shard": "only name files in its own folder, got 3 for cls_token",
    "parent": "only name files in its own folder, got '../other",
    "absolute": "only name files in its own folder",
    "drive": "only name files in its own folder",
    "backslash": "only name files in its own folder",
    "folder": "only name files in its own folder",
    "empty": "only name files in its own folder",
    "null": "only name files in its own folder",
    "cut index": "a damaged index of shards: .*; fetch it again",
    "deep index": "a damaged index of shards: .*; fetch it again",
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_shards_give_one_error(kind: str, tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    write_index(TENSORS, index)
    if kind in ("cut index", "deep index"):
        text = index.read_text()
        index.write_text(text[:-5] if kind == "cut index" else '{"weight_map":' * 100_000)
    else:
        damage(index, kind)
    with pytest.raises(CheckpointError, match=DAMAGED[kind]) as caught:
        read_checkpoint(index)
    assert str(caught.value).startswith(str(tmp_path))


def test_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    saved(TENSORS, tmp_path / "vit.pth")
    assert_same(read_checkpoint("~/vit.pth"), TENSORS)
    assert load_checkpoint(tiny_model(), "~/vit.pth").path == tmp_path / "vit.pth"
    assert tiny_model(pretrained=Path("~/vit.pth")).embed_dim == 32
