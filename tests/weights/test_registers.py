# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Register tokens of DINOv2 files stay where the model has some, and else leave with a warning."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_cases import (
    KEY_LISTS,
    adapted,
    as_hf,
    as_timm,
    assert_same,
    official,
    saved,
    tiny_model,
    trained,
    with_registers,
)
from torch import Tensor

from vitadapter_fast import CheckpointError, vit_adapter
from vitadapter_fast.weights import load_checkpoint
from vitadapter_fast.weights.formats import recognize
from vitadapter_fast.weights.load import fit

VIT = with_registers(official(patch=16))
NAMINGS: dict[str, Callable[[dict[str, Tensor]], dict[str, Any]]] = {
    "official": dict,
    "hf": as_hf,
    "hf with new names": lambda tensors: as_hf(tensors, has_new_names=True),
    "hf task": lambda tensors: as_hf(tensors, prefix="dinov2_with_registers."),
    "timm": as_timm,
    "converted": lambda tensors: {
        name.replace("ls1.gamma", "gamma1").replace("ls2.gamma", "gamma2"): tensor
        for name, tensor in tensors.items()
        if name != "mask_token"
    },
}


@pytest.mark.parametrize("final_norm", [False, True])
@pytest.mark.parametrize("naming", NAMINGS)
def test_registers_and_cls_token_are_kept(naming: str, final_norm: bool, tmp_path: Path) -> None:
    model = tiny_model(num_register_tokens=4, final_norm=final_norm)
    path = saved(NAMINGS[naming](VIT), tmp_path / "reg.pth")
    report = load_checkpoint(model, path)
    wanted = adapted(VIT) | {name: VIT[name] for name in ("cls_token", "register_tokens")}
    if final_norm:
        wanted |= {name: VIT[name] for name in ("norm.weight", "norm.bias")}
    state = dict(model.state_dict())
    if naming == "timm":
        # timm has the cls token with its position; what attends is the sum of both in any case.
        position = wanted["pos_embed"][:, :1]
        wanted["cls_token"] = wanted["cls_token"] + position
        wanted["pos_embed"] = wanted["pos_embed"].clone()
        wanted["pos_embed"][:, :1] = 0
    assert_same({name: state[name] for name in wanted}, wanted)
    assert report.loaded == len(wanted)
    assert not {"cls_token", "register_tokens"} & set(report.dropped)
    assert ("norm.weight" in report.dropped) != final_norm


@pytest.mark.parametrize("size", ["small", "base", "large", "giant"])
@pytest.mark.parametrize("format", ["official", "hf", "timm"])
def test_published_register_file_fits_a_model_with_registers(format: str, size: str) -> None:
    name = f"{format}_{size}_reg4"
    tensors = {key: torch.empty(shape, device="meta") for key, shape in KEY_LISTS[name].items()}
    with torch.device("meta"):
        model = vit_adapter(size[0], num_register_tokens=4, window_attn=False, final_norm=True)
    fitted = fit(recognize(tensors, name), model, Path(name), "bilinear")
    assert {"cls_token", "register_tokens", "norm.weight", "norm.bias"} <= fitted.tensors.keys()
    assert set(fitted.unused) <= {"mask_token"}


def test_dropped_registers_name_the_keywords_that_keep_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    report = load_checkpoint(tiny_model(), saved(VIT, tmp_path / "reg.pth"))
    assert {"cls_token", "register_tokens"} <= set(report.dropped)
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "num_register_tokens=4, window_attn=False keeps them" in warnings[0].getMessage()
    model = tiny_model(num_register_tokens=4, window_attn=False)
    assert "register_tokens" not in load_checkpoint(model, tmp_path / "reg.pth").dropped


@pytest.mark.parametrize("naming", NAMINGS)
def test_file_without_registers_asks_for_a_model_without(naming: str, tmp_path: Path) -> None:
    path = saved(NAMINGS[naming](official(patch=16)), tmp_path / "plain.pth")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tiny_model(num_register_tokens=4), path)
    assert (
        "the file has 0 register tokens, the model 4; build the model with num_register_tokens=0\n"
    ) in str(caught.value)
    assert "missing (1): register_tokens" in str(caught.value)


def test_windowed_model_is_told_to_attend_globally_too(tmp_path: Path) -> None:
    path = saved(trained(num_register_tokens=4), tmp_path / "trained.pth")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tiny_model(window_attn=True, window_size=2), path)
    assert "build the model with num_register_tokens=4, window_attn=False\n" in str(caught.value)
