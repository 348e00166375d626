# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Names that compilers and wrappers put between those of a model or a file; sharded models."""

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_cases import adapted, assert_same, official, saved, snapshot, tiny_model
from torch import Tensor, nn

from vitadapter_fast import CheckpointError
from vitadapter_fast.weights import load_checkpoint
from vitadapter_fast.weights.formats import without_wrappers

VIT = adapted(official(patch=16))
WRAPPED = {
    "torch_compile": "_orig_mod.",
    "fsdp": "_fsdp_wrapped_module.",
    "activation_checkpointing": "_checkpoint_wrapped_module.",
}


@pytest.mark.parametrize("wrapper", WRAPPED.values(), ids=WRAPPED)
def test_names_of_wrapped_parts_are_those_of_the_parts(wrapper: str, tmp_path: Path) -> None:
    parts = ("patch_embed.", "blocks.0.", "blocks.3.mlp.")
    wrapped = {}
    for name, tensor in official(patch=16).items():
        for part in parts:
            name = name.replace(part, part + wrapper)
        wrapped[f"module.{wrapper}{name}"] = tensor
    model = tiny_model()
    report = load_checkpoint(model, saved(wrapped, tmp_path / "wrapped.pth"))
    assert report.format == "official"
    state = model.state_dict()
    assert_same({name: state[name] for name in VIT}, VIT)


@pytest.mark.parametrize("is_whole", [False, True])
def test_model_with_compiled_parts_takes_the_names_of_the_parts(
    is_whole: bool, tmp_path: Path
) -> None:
    model = tiny_model()
    if is_whole:
        compiled: Any = torch.compile(model)
    else:
        compiled = model
        model.blocks[1] = torch.compile(model.blocks[1])  # type: ignore[assignment]
    load_checkpoint(compiled, saved(official(patch=16), tmp_path / "vit.pth"))
    state = without_wrappers(compiled.state_dict())
    assert_same({name: state[name] for name in VIT}, VIT)


def test_sharded_model_is_refused_before_anything_is_copied(tmp_path: Path) -> None:
    class Sharded(Tensor):
        @classmethod
        def __torch_function__(
            cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func is Tensor.copy_:
                raise RuntimeError("got mixed torch.Tensor and DTensor")
            return super().__torch_function__(func, types, args, kwargs or {})

    model = tiny_model()
    weight = model.blocks[3].mlp.fc2.weight
    model.blocks[3].mlp.fc2.weight = nn.Parameter(weight.detach().as_subclass(Sharded))
    before = snapshot(model)
    with pytest.raises(CheckpointError, match="another kind, Sharded; load the checkpoint before"):
        load_checkpoint(model, saved(official(patch=16), tmp_path / "vit.pth"))
    assert_same(model.state_dict(), before)
