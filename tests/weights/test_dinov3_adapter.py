# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A model with DINOv3's trunk leaves under the names of DINOv3's own adapter, and comes back."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_cases import assert_same, saved, tiny_model
from dinov3_cases import (
    DINOV3_KEYS,
    FFNS,
    dinov3_model,
    golden,
    golden_adapter,
    on_meta,
    under,
    whole_adapter,
)
from torch import Tensor, nn

from vitadapter_fast import CheckpointError, ViTAdapter
from vitadapter_fast.checkpoint import load_checkpoint, to_dinov3
from vitadapter_fast.weights.files import write_checkpoint


def random(**overrides: Any) -> ViTAdapter:
    """A model with all tensors away from their initial values."""
    model = dinov3_model(**overrides)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor))
            else:
                tensor += 3
    return model


@pytest.mark.parametrize("ffn", FFNS)
def test_names_and_shapes_are_those_of_the_original(ffn: str) -> None:
    tensors = to_dinov3(dinov3_model(**FFNS[ffn]).state_dict(), num_heads=2)
    wanted = golden_adapter() | under("backbone.", golden("official", ffn))
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        name: tensor.shape for name, tensor in wanted.items()
    }
    periods = "backbone.rope_embed.periods"
    assert torch.equal(tensors[periods], wanted[periods])
    assert (tensors[periods].dtype, len(tensors)) == (torch.bfloat16, len(wanted))


def test_file_of_the_original_comes_back_as_it_was(tmp_path: Path) -> None:
    model, content = dinov3_model(), whole_adapter()
    load_checkpoint(model, saved(content, tmp_path / "adapter.pth"))
    back = to_dinov3(model.state_dict(), num_heads=2)
    # The bias is there times its mask, and the mask token of pretraining is not.
    for name in [name for name in content if name.endswith("qkv.bias")]:
        content[name] = content[name] * content[f"{name}_mask"]
    content["backbone.mask_token"] = torch.zeros(1, 48)
    assert_same(back, content)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    "settings",
    [{}, FFNS["swiglu"], {"qkv_bias": False}, {"num_register_tokens": 7}],
    ids=["mlp", "swiglu", "no-bias", "registers"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_round_trip_is_exact(
    dtype: torch.dtype, settings: dict[str, Any], suffix: str, tmp_path: Path
) -> None:
    model = random(**settings).to(dtype)
    path = tmp_path / f"adapter{suffix}"
    write_checkpoint(to_dinov3(model.state_dict(), num_heads=2), path)
    other = dinov3_model(**settings).to(dtype)
    report = load_checkpoint(other, path)
    assert (report.format, report.missing) == ("dinov3_adapter", 0)
    assert_same(dict(other.state_dict()), dict(model.state_dict()))


@pytest.mark.parametrize("has_keys", [False, True])
def test_keys_are_masked_unless_they_have_a_bias(has_keys: bool) -> None:
    state = dict(random().state_dict())
    for name in [name for name in state if name.endswith("qkv.bias")]:
        state[name] = state[name].clone()
        state[name][48:96] *= has_keys
    tensors = to_dinov3(state, num_heads=2)
    masks = [tensors[name] for name in tensors if name.endswith("bias_mask")]
    wanted = torch.ones(144)
    wanted[48:96] = has_keys
    assert len(masks) == 6
    assert all(torch.equal(mask, wanted) for mask in masks)


OFFICIAL = {
    "s": "official_vits16",
    "s+": "official_vits16plus",
    "b": "official_vitb16",
    "l": "official_vitl16",
    "h+": "official_vith16plus",
    "7b": "official_vit7b16",
}


@pytest.mark.parametrize("size", OFFICIAL)
def test_trunk_of_a_published_size_has_all_names_of_its_file(size: str) -> None:
    tensors = to_dinov3(on_meta(size).state_dict())
    of_trunk = {n: list(tensor.shape) for n, tensor in tensors.items() if n.startswith("backbone.")}
    keys = DINOV3_KEYS[OFFICIAL[size]]
    wanted = {name: shape for name, shape in keys.items() if "local_cls_norm" not in name}
    assert of_trunk == under("backbone.", wanted)


def test_license_of_the_weights_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "vitadapter_fast"):
        to_dinov3(dinov3_model().state_dict(), num_heads=2)
    assert ["DINOv3 License" in message for message in caplog.messages] == [True]


@pytest.mark.parametrize("heads", [None, 5, 24, 0, -2])
def test_heads_that_cannot_be_are_refused(heads: int | None) -> None:
    with pytest.raises(ValueError, match="to_dinov3: wanted the num_heads"):
        to_dinov3(dinov3_model().state_dict(), num_heads=heads)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "injectors": ({"injectors": True}, "it has injectors"),
    "no final norm": ({"final_norm": False}, r"it has no final norm \(final_norm=True\)"),
    "no registers": ({"num_register_tokens": 0}, "it has no register tokens"),
    "no layer scale": ({"layer_scale": False}, "it has no LayerScale"),
    "both": (
        {"injectors": True, "layer_scale": False},
        "it has injectors; it has no LayerScale",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_model_that_the_original_cannot_be_is_refused(case: str) -> None:
    settings, told = REFUSED[case]
    with pytest.raises(CheckpointError, match=f"^to_dinov3: .* cannot hold this model: {told}$"):
        to_dinov3(dinov3_model(**settings).state_dict(), num_heads=2)


def test_trunk_of_dinov2_is_refused() -> None:
    model = tiny_model(injectors=False, final_norm=True, num_register_tokens=4)
    with pytest.raises(CheckpointError, match="its trunk is DINOv2's, with a position table$"):
        to_dinov3(model.state_dict(), num_heads=2)


def test_what_is_no_adapter_is_refused() -> None:
    with pytest.raises(CheckpointError, match="it is no state dict of a ViTAdapter"):
        to_dinov3(nn.Linear(2, 2).state_dict())


def test_what_lies_beside_the_adapter_is_refused() -> None:
    state: dict[str, Tensor] = dict(dinov3_model().state_dict()) | {"head.weight": torch.ones(2)}
    with pytest.raises(CheckpointError, match="it has more than a ViTAdapter: head.weight$"):
        to_dinov3(state, num_heads=2)
