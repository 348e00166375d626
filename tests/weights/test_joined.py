# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""What a file has in parts is copied part by part: no second copy of it lies in memory."""

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_cases import as_hf, assert_same, official, saved, tiny_model
from dinov3_cases import FFNS, dinov3_model, expected, golden
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vitadapter_fast import ViTAdapter
from vitadapter_fast.weights import load
from vitadapter_fast.weights.joined import Joined, can_join, copy_into, joined, whole
from vitadapter_fast.weights.read import read_weights


class Born(TorchDispatchMode):
    """Counts the bytes of tensors that operators make, and the most of them alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {
            each.untyped_storage().data_ptr() for each in args if isinstance(each, Tensor)
        } | self.seen
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.untyped_storage().data_ptr() not in given:
            size = out.numel() * out.element_size()
            pointer = out.untyped_storage().data_ptr()
            self.alive += size
            self.peak = max(self.peak, self.alive)
            self.seen.add(pointer)
            weakref.finalize(out, self.dead, size, pointer)
        return out

    def dead(self, size: int, pointer: int) -> None:
        self.alive -= size
        self.seen.discard(pointer)


def peak_of_loading(
    model: ViTAdapter, path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[int, list[torch.Size]]:
    """Most bytes that loading holds beside file and model, and shapes of what it concatenates."""
    # The file is mapped, so reading it makes no copy to count.
    weights = read_weights(path)
    monkeypatch.setattr(load, "read_weights", lambda *args, **kwargs: weights)
    shapes = []
    cat = torch.cat

    def noted(*args: Any, **kwargs: Any) -> Tensor:
        out = cat(*args, **kwargs)
        shapes.append(out.shape)
        return out

    monkeypatch.setattr(torch, "cat", noted)
    with Born() as born:
        load.load_checkpoint(model, path)
    return born.peak, shapes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("format", ["official", "hf", "timm"])
def test_loading_makes_no_second_copy_of_a_matrix(
    format: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = dinov3_model(**FFNS["swiglu"]).to(dtype)
    tensors = golden(format, "swiglu")
    path = saved(tensors, tmp_path / "vit.safetensors")
    peak, shapes = peak_of_loading(model, path, monkeypatch)
    assert not [shape for shape in shapes if len(shape) > 1]
    # Biases alone, which are arithmetic: less than the smallest matrix.
    assert peak < 48 * 48 * 4
    wanted = expected(golden("official", "swiglu"))
    state = model.state_dict()
    assert_same({n: state[n] for n in wanted}, {n: t.to(dtype) for n, t in wanted.items()})


def test_parts_of_dinov2_files_are_not_joined_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = official(patch=16, is_swiglu=True)
    path = saved(as_hf(tensors, has_new_names=True), tmp_path / "hf.safetensors")
    assert peak_of_loading(tiny_model(ffn="swiglu"), path, monkeypatch) == (0, [])


def test_a_copy_would_be_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The patch kernel of 14 pixels is resized.
    path = saved(official(), tmp_path / "vit.safetensors")
    peak, _ = peak_of_loading(tiny_model(), path, monkeypatch)
    assert peak >= 32 * 3 * 16 * 16 * 4


def parts() -> list[Tensor]:
    return [torch.randn(2, 3), torch.randn(1, 3, dtype=torch.float64), torch.randn(4, 3).half()]


def test_joined_is_what_cat_makes() -> None:
    made, wanted = Joined(parts()), torch.cat(parts())
    assert (made.shape, made.dtype, made.dim()) == (wanted.shape, wanted.dtype, 2)
    assert made.is_floating_point()
    assert not made.is_meta
    assert whole(made).shape == wanted.shape
    assert whole(wanted) is wanted


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_copy_is_that_of_the_whole(dtype: torch.dtype) -> None:
    made = Joined(parts())
    target = torch.empty(7, 3, dtype=dtype)
    copy_into(target, made)
    assert torch.equal(target, torch.cat([part.to(dtype) for part in made.parts]))
    copy_into(target, torch.ones(7, 3))
    assert target.eq(1).all()


def test_a_part_that_is_no_number_makes_the_whole_none() -> None:
    made = Joined([torch.ones(1, 2), torch.ones(1, 2, dtype=torch.int8), torch.ones(1, 2)])
    assert (made.dtype, made.is_floating_point()) == (torch.int8, False)


def test_parts_without_values_are_told() -> None:
    assert Joined([torch.ones(1, 2), torch.ones(3, 2, device="meta")]).is_meta


def test_scalars_and_other_rows_cannot_be_joined() -> None:
    assert can_join([torch.ones(2, 3), torch.ones(5, 3)])
    assert not can_join([torch.tensor(1.0), torch.tensor(2.0)])
    assert not can_join([torch.ones(2, 3), torch.ones(2, 4)])


def test_what_has_no_place_of_its_own_keeps_its_name() -> None:
    places = {"a": ("x", 0, 2), "b": ("x", 1, 2), "c": ("x", 0, 2), "d": ("y", 0, 2)}
    tensors = {name: torch.ones(1) for name in places}
    made = joined(tensors, lambda name: places[name])
    assert made.keys() == {"x", "c", "d"}
