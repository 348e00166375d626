# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Masks, biases and periods of DINOv3 files: what they mean is taken, what they cannot is told."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_cases import assert_same, official, saved, snapshot, tiny_model
from dinov3_cases import (
    DINOV3_KEYS,
    FFNS,
    changed,
    dinov3_model,
    expected,
    golden,
    golden_adapter,
    whole_adapter,
    without,
)
from torch import Tensor

from vitadapter_fast import CheckpointError, ViTAdapter
from vitadapter_fast.presets import DINOV3_PRESETS
from vitadapter_fast.weights import LoadReport, load_checkpoint
from vitadapter_fast.weights.formats import recognize
from vitadapter_fast.weights.size import vit_size

BIAS = "blocks.3.attn.qkv.bias"
EXACT = torch.tensor([100 ** (k / 6) for k in range(6)], dtype=torch.float64)


def loaded(content: Any, tmp_path: Path, **overrides: Any) -> tuple[dict[str, Tensor], LoadReport]:
    model = dinov3_model(**overrides)
    report = load_checkpoint(model, saved(content, tmp_path / "file.pth"))
    return dict(model.state_dict()), report


def refusal(content: Any, tmp_path: Path, model: ViTAdapter | None = None) -> str:
    """Message with which a model refuses a file; the model must stay as it was."""
    model = dinov3_model() if model is None else model
    before = snapshot(model)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(model, saved(content, tmp_path / "refused.pth"))
    assert_same(dict(model.state_dict()), before)
    return str(caught.value)


def test_bias_is_taken_times_its_mask(tmp_path: Path) -> None:
    tensors = golden("official")
    # Also one that is neither 0 nor 1.
    tensors[f"{BIAS}_mask"] = torch.linspace(-1, 2, 144)
    state, report = loaded(tensors, tmp_path)
    assert torch.equal(state[BIAS], tensors[BIAS] * tensors[f"{BIAS}_mask"])
    assert not [name for name in report.dropped if "bias" in name]


def test_mask_of_zeros_leaves_no_bias(tmp_path: Path) -> None:
    state, _ = loaded(changed(golden("official"), "bias_mask", torch.zeros_like), tmp_path)
    assert not [name for name in state if name.endswith("qkv.bias") and state[name].any()]


def test_mask_of_nan_masks_the_keys_and_warns(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tensors = changed(golden("official"), "bias_mask", lambda mask: mask * float("nan"))
    state, _ = loaded(tensors, tmp_path)
    assert torch.equal(state[BIAS], expected(golden("official"))[BIAS])
    assert ["bias masks are NaN" in message for message in caplog.messages] == [True]


def test_bias_without_a_mask_is_taken_as_it_is(tmp_path: Path) -> None:
    tensors = without("bias_mask", golden("official"))
    state, _ = loaded(tensors, tmp_path)
    assert torch.equal(state[BIAS], tensors[BIAS])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_bias_that_is_no_number_is_refused(value: float, tmp_path: Path) -> None:
    # Also where the mask would hide it: it does not upstream.
    tensors = changed(golden("official"), ".qkv.bias", lambda bias: bias.fill_(value))
    message = refusal(tensors, tmp_path)
    assert "NaN or infinite: blocks.0.attn.qkv.bias and 5 more of its kind; " in message


@pytest.mark.parametrize("shape", [(), (5,), (144, 1)])
def test_mask_of_another_shape_is_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    tensors = golden("official") | {f"{BIAS}_mask": torch.ones(shape)}
    assert f"unexpected (1): {BIAS}_mask" in refusal(tensors, tmp_path)


@pytest.mark.parametrize(("format", "end"), [("timm", "_bias"), ("official", "qkv.bias")])
def test_file_without_a_bias_gives_zeros(format: str, end: str, tmp_path: Path) -> None:
    tensors = without("bias_mask", without(end, golden(format)))
    state, report = loaded(tensors, tmp_path)
    assert report.loaded == 90
    assert not [name for name in state if name.endswith("qkv.bias") and state[name].any()]


def test_file_without_the_bias_of_one_block_is_refused(tmp_path: Path) -> None:
    tensors = golden("official")
    del tensors[BIAS], tensors[f"{BIAS}_mask"]
    assert f"missing (1): {BIAS}" in refusal(tensors, tmp_path)


@pytest.mark.parametrize("part", ["q", "v"])
def test_hugging_face_file_with_a_part_of_a_bias_is_refused(part: str, tmp_path: Path) -> None:
    tensors = golden("hf")
    del tensors[f"layer.2.attention.{part}_proj.bias"]
    assert "missing (1): blocks.2.attn.qkv.bias" in refusal(tensors, tmp_path)


@pytest.mark.parametrize("format", ["official", "hf", "timm"])
def test_zero_bias_is_dropped_where_the_model_has_none(format: str, tmp_path: Path) -> None:
    tensors = golden(format)
    for end in (".qkv.bias", "q_proj.bias", "v_proj.bias", "q_bias", "v_bias"):
        tensors = changed(tensors, end, torch.zeros_like)
    state, report = loaded(tensors, tmp_path, qkv_bias=False)
    assert len([name for name in report.dropped if name.endswith("qkv.bias")]) == 6
    wanted = without("qkv.bias", expected(golden("official")))
    assert_same({name: state[name] for name in wanted}, wanted)


@pytest.mark.parametrize("format", ["official", "hf", "timm"])
def test_other_bias_asks_for_a_model_with_one(format: str, tmp_path: Path) -> None:
    message = refusal(golden(format), tmp_path, dinov3_model(qkv_bias=False))
    assert "the file has blocks.*.attn.qkv.bias; build the model with qkv_bias=True" in message


def periods(tensor: Tensor) -> dict[str, Tensor]:
    return golden("official") | {"rope_embed.periods": tensor}


ROUNDED = EXACT.to(torch.bfloat16)


@pytest.mark.parametrize("policy", ["bfloat16", "exact"])
@pytest.mark.parametrize(
    "held",
    [
        ROUNDED,
        ROUNDED.float(),
        ROUNDED.half(),
        EXACT,
        EXACT.float(),
        100 ** (torch.arange(6) / 6),
        EXACT.half(),
    ],
    ids=["bf16", "bf16-float", "bf16-half", "exact-double", "exact-float", "powers", "exact-half"],
)
def test_periods_of_either_policy_load_and_exact_ones_warn_a_rounding_model(
    held: Tensor, policy: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, report = loaded(periods(held), tmp_path, rope_periods=policy)
    assert report.rope_periods == policy
    is_exact = not torch.equal(held.double(), ROUNDED.double())
    warnings = ['rope_periods="exact"' in message for message in caplog.messages]
    assert warnings == ([True] if is_exact and policy == "bfloat16" else [])


@pytest.mark.parametrize(
    "held",
    [
        EXACT * 1.01,
        torch.tensor([10000 ** (k / 6) for k in range(6)]),
        EXACT.flip(0),
        EXACT.clone().fill_(float("nan")),
        torch.arange(6),
        EXACT[None],
        EXACT[:0],
    ],
    ids=["scaled", "base", "order", "nan", "whole", "2d", "empty"],
)
def test_other_periods_are_refused(held: Tensor, tmp_path: Path) -> None:
    message = refusal(periods(held), tmp_path)
    assert re.search(r"rope_embed\.periods (begins with .* 100 \*\* \(k / 6\)|is \()", message)


def test_number_of_periods_tells_the_heads(tmp_path: Path) -> None:
    path = saved(golden("official"), tmp_path / "vit.pth")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(dinov3_model(num_heads=4), path)
    assert (
        "the file's heads have 24 channels, as its rotary periods tell, the model's 12; build the "
        "model with num_heads=2"
    ) in str(caught.value)
    load_checkpoint(dinov3_model(num_heads=2), path)


def test_model_with_a_table_has_no_periods(tmp_path: Path) -> None:
    path = saved(official(), tmp_path / "v2.pth")
    assert load_checkpoint(tiny_model(), path).rope_periods is None


def test_all_faults_of_a_file_are_in_one_error(tmp_path: Path) -> None:
    tensors = periods(EXACT * 2) | {"extra.weight": torch.ones(2)}
    tensors[BIAS] = tensors[BIAS] * float("nan")
    del tensors["blocks.1.mlp.fc2.bias"]
    message = refusal(tensors, tmp_path, dinov3_model(num_heads=4))
    for part in ("num_heads=2", "begins with 2,", "NaN", "fc2.bias", "extra.weight"):
        assert part in message


@pytest.mark.parametrize(
    ("file", "settings", "hint"),
    [
        ("swiglu", {}, 'ffn="swiglu", mlp_ratio=6.0'),
        ("mlp", FFNS["swiglu"], 'ffn="mlp", mlp_ratio=4.0'),
        ("mlp", {"num_register_tokens": 0}, "num_register_tokens=4"),
        ("mlp", {"num_register_tokens": 8}, "num_register_tokens=4"),
        ("mlp", {"layer_scale": False}, "layer_scale=True"),
    ],
)
def test_other_setting_gives_its_keyword(
    file: str, settings: dict[str, Any], hint: str, tmp_path: Path
) -> None:
    message = refusal(golden("official", file), tmp_path, dinov3_model(**settings))
    assert f"build the model with {hint}\n" in message


def published(name: str) -> dict[str, Tensor]:
    """Zeros in the shapes of a published file, one number each."""
    tensors = {key: torch.zeros(1).expand(shape) for key, shape in DINOV3_KEYS[name].items()}
    return without("periods", tensors)


@pytest.mark.parametrize(
    ("name", "size"), [("official_vits16", "s"), ("hf_vits16plus", "s+"), ("official_vitb16", "b")]
)
def test_file_of_a_published_size_names_its_builder(name: str, size: str, tmp_path: Path) -> None:
    preset = DINOV3_PRESETS[size]
    message = refusal(published(name), tmp_path, tiny_model())
    assert (
        f"the file is a DINOv3 ViT-{size.upper()} (embed_dim {preset.embed_dim}, 12 blocks); the "
        f"model is a DINOv2 ViT (embed_dim 32, 4 blocks); build the model with "
        f'vit_adapter_dinov3("{size}")\n'
    ) in message
    other = "the model is a ViT (embed_dim 48, 6 blocks); build the model with "
    assert f'{other}vit_adapter_dinov3("{size}")\n' in refusal(published(name), tmp_path)


@pytest.mark.parametrize("name", sorted(DINOV3_KEYS))
def test_size_of_every_published_file_has_a_builder(name: str) -> None:
    tensors = {key: torch.empty(shape, device="meta") for key, shape in DINOV3_KEYS[name].items()}
    size = vit_size(recognize(tensors, name).tensors)
    assert size is not None
    if name == "official_vitl16plus":  # in the code, never published
        assert size.builder is None
    else:
        assert re.fullmatch(r'vit_adapter_dinov3\("(t|s|s\+|b|l|h\+|7b)"\)', size.builder or "")


def test_dinov2_file_names_its_builder_for_a_dinov3_model(tmp_path: Path) -> None:
    message = refusal(official(), tmp_path)
    assert (
        "the file is a DINOv2 ViT (embed_dim 32, 4 blocks); the model is a DINOv3 ViT (embed_dim "
        '48, 6 blocks); build the model with trunk="dinov2"'
    ) in message


def test_whole_adapter_in_a_dinov2_model_is_told(tmp_path: Path) -> None:
    assert "the file is a DINOv3 ViT" in refusal(whole_adapter(), tmp_path, tiny_model())
    assert "level_embed" in golden_adapter()
