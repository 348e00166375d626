# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Files that are damaged, foreign or hostile give one clear error."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_cases import Payload, assert_same, official, saved, tiny_model
from torch import nn

from vitadapter_fast import CheckpointError
from vitadapter_fast.weights import load_checkpoint, read_checkpoint


def read_error(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value)


def file_of(content: bytes, path: Path) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_missing_file_is_named(suffix: str, tmp_path: Path) -> None:
    assert "no such file" in read_error(tmp_path / f"none{suffix}")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_empty_file_is_told(suffix: str, tmp_path: Path) -> None:
    assert "the file is empty" in read_error(file_of(b"", tmp_path / f"empty{suffix}"))


@pytest.mark.parametrize(
    "read", [read_checkpoint, lambda path: load_checkpoint(tiny_model(), path)]
)
def test_empty_path_is_not_the_current_folder(
    read: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(official(), tmp_path / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="^'': no such file: the path is empty$"):
        read("")


def test_directory_is_told(tmp_path: Path) -> None:
    assert "a directory" in read_error(tmp_path)


@pytest.mark.parametrize("kept", [0.02, 0.5, 0.99])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_truncated_file_is_told(suffix: str, kept: float, tmp_path: Path) -> None:
    content = saved(official(), tmp_path / f"whole{suffix}").read_bytes()
    path = file_of(content[: int(len(content) * kept)], tmp_path / f"cut{suffix}")
    assert "truncated" in read_error(path)


@pytest.mark.parametrize("kept", [0.5, 0.99])
def test_truncated_file_of_old_torch_is_told(kept: float, tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    torch.save(official(), path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    assert "truncated" in read_error(file_of(content[: int(len(content) * kept)], path))


def test_file_of_old_torch_reads(tmp_path: Path) -> None:
    tensors = official()
    torch.save(tensors, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert_same(read_checkpoint(tmp_path / "old.pth"), tensors)


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "old"])
def test_code_in_a_torch_file_is_named_and_not_run(is_zip: bool, tmp_path: Path) -> None:
    path, mark = tmp_path / "bad.pth", tmp_path / "mark"
    content = {**official(), "payload": Payload(mark)}
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    assert ".system" in read_error(path)
    assert not mark.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_code_in_a_plain_pickle_is_not_run(protocol: int, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    content = pickle.dumps({"payload": Payload(mark)}, protocol)
    read_error(file_of(content, tmp_path / "bad.pth"))
    assert not mark.exists()


def test_payload_of_these_tests_does_run_when_unpickled(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Payload(tmp_path / "mark")))
    assert (tmp_path / "mark").exists()


def test_pickled_module_is_refused(tmp_path: Path) -> None:
    path = saved({"model": nn.Linear(2, 2)}, tmp_path / "module.pth")
    assert "holds Python objects (torch.nn.modules.linear.Linear" in read_error(path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"<html>Not found</html>", bytes(range(256)) * 9])
def test_file_of_another_kind_is_told(content: bytes, suffix: str, tmp_path: Path) -> None:
    assert "not a" in read_error(file_of(content, tmp_path / f"other{suffix}"))


def test_git_lfs_pointer_is_told(tmp_path: Path) -> None:
    content = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    assert "Git LFS" in read_error(file_of(content, tmp_path / "pointer.pth"))


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, {"state_dict": {}}])
def test_file_without_tensors_is_told(content: Any, tmp_path: Path) -> None:
    assert "no tensors inside" in read_error(saved(content, tmp_path / "none.pth"))


@pytest.mark.parametrize("content", [[1, 2], torch.ones(3)], ids=["list", "tensor"])
def test_file_without_names_is_told(content: Any, tmp_path: Path) -> None:
    assert "wanted a dict of named tensors" in read_error(saved(content, tmp_path / "one.pth"))


def test_values_that_are_no_tensors_are_named(tmp_path: Path) -> None:
    path = saved({**official(), "epoch": 3}, tmp_path / "mixed.pth")
    assert "epoch (int)" in read_error(path)


ODD = {
    "meta": lambda tensor: tensor.to("meta"),
    "sparse_coo": torch.Tensor.to_sparse,
    "sparse_csr": torch.Tensor.to_sparse_csr,
    "nested": lambda tensor: torch.nested.nested_tensor([tensor, tensor[:1]]),
    "quantized": lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", ["patch_embed.proj.weight", "blocks.3.mlp.fc2.weight"])
@pytest.mark.parametrize("kind", ODD)
def test_tensors_that_are_no_plain_numbers_are_named(kind: str, name: str, tmp_path: Path) -> None:
    tensors = official(patch=16)
    odd = tensors | {name: ODD[kind](tensors[name].flatten(1))}
    model = tiny_model()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    path = saved(odd, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(model, path)
    assert str(caught.value).startswith(f"{path}: ") and f"{name} ({kind}" in str(caught.value)
    assert_same(model.state_dict(), before)


def test_several_state_dicts_are_told(tmp_path: Path) -> None:
    content = {"model": official(), "teacher": official()}
    assert "several state dicts (model, teacher)" in read_error(saved(content, tmp_path / "2.pth"))


@pytest.mark.parametrize(
    "keys", [("state_dict",), ("model",), ("teacher",), ("model", "state_dict")]
)
def test_nested_state_dict_is_taken_out(keys: tuple[str, ...], tmp_path: Path) -> None:
    tensors = official()
    content: dict[str, Any] = tensors
    for key in keys:
        content = {key: content, "epoch": 3}
    assert_same(read_checkpoint(saved(content, tmp_path / "nested.pth")), tensors)


@pytest.mark.parametrize("name", ["vit.pth", "vit.safetensors"])
def test_hole_in_a_torch_file_is_told(name: str, tmp_path: Path) -> None:
    """As a download leaves it that comes in pieces: the end is there, a piece is zeros."""
    path = tmp_path / name
    with path.open("wb") as file:
        torch.save(official(), file)
    whole = bytearray(path.read_bytes())
    place = whole.index(official()["blocks.1.mlp.fc1.weight"].numpy().tobytes())
    for start, stop in ((place, place + 64), (place - 2000, place + 2000)):
        with_hole = whole.copy()
        with_hole[start:stop] = bytes(stop - start)
        assert "the file is damaged: Bad " in read_error(file_of(with_hole, path))


def test_torch_file_without_checksums_reads(tmp_path: Path) -> None:
    if not hasattr(torch.serialization, "set_crc32_options"):
        pytest.skip("this torch always writes them")
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(official(), tmp_path / "vit.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert_same(read_checkpoint(path), official())


def test_damaged_directory_of_a_torch_file_raises_nothing_else(tmp_path: Path) -> None:
    whole = saved({"weight": torch.ones(3)}, tmp_path / "whole.pth").read_bytes()
    num_refused = 0
    # The last 98 bytes are the end records; some of their fields are read by nobody.
    for index in range(len(whole) - 98, len(whole)):
        damaged = whole[:index] + b"\xee" + whole[index + 1 :]
        try:
            read_checkpoint(file_of(damaged, tmp_path / "damaged.pth"))
        except CheckpointError:
            num_refused += 1
    assert num_refused > 20
