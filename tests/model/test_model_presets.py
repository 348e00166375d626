# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The presets are the published models, and settings that cannot work are refused."""

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import vitadapter_fast
from vitadapter_fast import ViTAdapter
from vitadapter_fast.presets import PRESETS

# Adapter and ViT without cls token and final norm, of 37 x 37 positions.
COUNTS = {"s": 27_954_320, "b": 100_396_256, "l": 327_785_664, "g": 1_187_112_064}
GLOBAL_BLOCKS = {
    "s": [2, 5, 8, 11],
    "b": [2, 5, 8, 11],
    "l": [5, 11, 17, 23],
    "g": [9, 19, 29, 39],
}


def build(name: str, **overrides: Any) -> ViTAdapter:
    return vitadapter_fast.vit_adapter(name, **overrides)


@pytest.mark.parametrize("name", COUNTS)
def test_preset_on_meta_has_the_published_parameter_count(name: str) -> None:
    with torch.device("meta"):
        model = build(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == COUNTS[name]


@torch.no_grad()
def build_filled(name: str) -> ViTAdapter:
    """Build on meta and copy weights from one block of noise: drawing 1.2e9 numbers takes 12 s."""
    with torch.device("meta"):
        model = build(name)
    model.to_empty(device="cpu")
    noise = 0.02 * torch.randn(8192 * 1536)
    for parameter in model.parameters():
        parameter.copy_(noise[: parameter.numel()].view_as(parameter))
    for key, buffer in model.named_buffers():
        buffer.fill_(1 if key.endswith("running_var") else 0)
    return model.eval()


@torch.no_grad()
def test_small_preset_starts_with_finite_weights() -> None:
    assert all(tensor.isfinite().all() for tensor in build("s").state_dict().values())


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.thorough if name == "g" else ()) for name in COUNTS],
)
@torch.no_grad()
def test_preset_makes_four_finite_maps_of_an_image(name: str) -> None:
    maps = build_filled(name)(torch.randn(1, 3, 64, 96))
    assert [tuple(m.shape[1:]) for m in maps if m.isfinite().all()] == [
        (PRESETS[name].embed_dim, 64 // stride, 96 // stride) for stride in (4, 8, 16, 32)
    ]


@pytest.mark.parametrize("name", COUNTS)
def test_preset_attends_globally_at_the_end_of_each_stage_only(name: str) -> None:
    with torch.device("meta"):
        blocks = build(name).blocks
    assert [i for i, b in enumerate(blocks) if b.attn.window_size is None] == GLOBAL_BLOCKS[name]


def test_preset_windows_are_14_tokens_wide() -> None:
    with torch.device("meta"):
        blocks = build("s").blocks
    assert {block.attn.window_size for block in blocks} == {14, None}


def test_override_replaces_the_preset_value() -> None:
    with torch.device("meta"):
        model = build("s", conv_inplane=16)
    assert model.spm.stem[0].out_channels == 16


@pytest.mark.parametrize("name", COUNTS)
def test_every_preset_has_a_function_of_its_own(name: str) -> None:
    with torch.device("meta"):
        model = getattr(vitadapter_fast, f"vit_adapter_{name}")(conv_inplane=16)
    assert model.embed_dim == PRESETS[name].embed_dim and len(model.blocks) == PRESETS[name].depth
    assert model.spm.stem[0].out_channels == 16


def test_unknown_size_is_refused() -> None:
    with pytest.raises(ValueError, match="size must be one of s, b, l, g, dinov3-t, .*, got 'xl'"):
        build("xl")


def test_unknown_override_is_refused() -> None:
    with pytest.raises(TypeError, match="conv_inplanes"):
        build("s", conv_inplanes=16)


def test_pretrained_path_is_loaded_into_the_model(
    tiny: Callable[..., ViTAdapter], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, Any]] = []
    fake = SimpleNamespace(load_checkpoint=lambda *args, **_: calls.append(args))
    monkeypatch.setitem(sys.modules, "vitadapter_fast.weights", fake)
    model = tiny(pretrained="weights.pth")
    assert calls == [(model, "weights.pth")]


def test_preset_loads_its_pretrained_path(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, Any]] = []
    fake = SimpleNamespace(load_checkpoint=lambda *args, **_: calls.append(args))
    monkeypatch.setitem(sys.modules, "vitadapter_fast.weights", fake)
    with torch.device("meta"):
        model = vitadapter_fast.vit_adapter_s("weights.pth")
    assert calls == [(model, "weights.pth")]


REFUSED = {
    "patch_size_14": ({"patch_size": 14}, "patch_size must be 16, got 14.*convert_14to16"),
    "sizes_of_two_tables": ({"img_size": 96}, r"96 // 16 = 6 and 64 // 16 = 4"),
    "heads_that_do_not_divide": ({"num_heads": 5}, "embed_dim 32.*num_heads=5"),
    "deform_heads_that_do_not_divide": ({"deform_num_heads": 3}, "16 value.*deform_num_heads=3"),
    "no_value_channels": ({"deform_ratio": 0.01}, "0 value channels"),
    "no_hidden_channels": ({"cffn_ratio": 0.01}, "hidden channels.*raise cffn_ratio"),
    "short_window_attn": ({"window_attn": [True]}, "window_attn.*depth=4, got a list of 1"),
    "long_window_size": ({"window_size": [3] * 5}, "window_size.*depth=4, got a list of 5"),
    "window_without_size": ({"window_size": None}, "window_size must be positive.*block 0"),
    "window_of_zero": ({"window_size": 0}, "window_size must be positive.*got 0"),
    "stages_with_a_gap": ({"interaction_indexes": [[0, 0], [2, 3]]}, "blocks 0 to 3.*gaps"),
    "stages_that_overlap": ({"interaction_indexes": [[0, 2], [2, 3]]}, "blocks 0 to 3"),
    "stages_out_of_order": ({"interaction_indexes": [[2, 3], [0, 1]]}, "blocks 0 to 3"),
    "stages_that_end_early": ({"interaction_indexes": [[0, 2]]}, "blocks 0 to 3"),
    "stages_past_the_end": ({"interaction_indexes": [[0, 4]]}, "blocks 0 to 3"),
    "stage_backwards": ({"interaction_indexes": [[0, -1], [0, 3]]}, "blocks 0 to 3"),
    "stage_after_the_last": ({"interaction_indexes": [[0, 3], [4, 3]]}, "blocks 0 to 3"),
    "empty_stage": ({"interaction_indexes": [[0, 3], []]}, "blocks 0 to 3"),
    "three_stages_for_four_maps": (
        {"vit_features": "stages", "interaction_indexes": [[0, 0], [1, 1], [2, 3]]},
        "needs 4 stages.*got 3",
    ),
    "unknown_ffn": ({"ffn": "glu"}, "ffn must be one of mlp, swiglu, got 'glu'"),
    "unknown_norm": ({"norm": "LN"}, "norm must be one of .*, got 'LN'"),
    "unknown_vit_features": ({"vit_features": "all"}, "vit_features must be .* got 'all'"),
    "drop_path_of_one": ({"drop_path_rate": 1.0}, "drop_path_rate must be .*below 1, got 1.0"),
    "negative_dropout": ({"drop_rate": -0.1}, "drop_rate must be at least 0"),
    "no_points": ({"n_points": 0}, "n_points must be positive, got 0"),
    "no_channels": ({"in_chans": 0}, "in_chans must be positive"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_setting_is_refused(case: str, tiny: Callable[..., ViTAdapter]) -> None:
    overrides, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        tiny(**overrides)


FLAGS = ["with_cffn", "add_vit_feature", "use_extra_extractor", "with_cp", "frozen_vit"]


@pytest.mark.parametrize("name", [*FLAGS, "channels_last", "qkv_bias", "layer_scale"])
def test_words_are_no_flags(name: str, tiny: Callable[..., ViTAdapter]) -> None:
    with pytest.raises(TypeError, match=f"ViTAdapter: {name} must be True or False, got 'False'"):
        tiny(**{name: "False"})


BAD_IMAGES = {
    "three_dimensions": (torch.zeros(3, 64, 64), r"\[B, 3, H, W\], got \(3, 64, 64\)"),
    "four_channels": (torch.zeros(1, 4, 64, 64), r"\[B, 3, H, W\].*set in_chans"),
    "too_low": (torch.zeros(1, 3, 31, 64), "at least 32 x 32.*got 31 x 64"),
    "too_narrow": (torch.zeros(1, 3, 64, 16), "at least 32 x 32.*got 64 x 16"),
    "bytes": (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "floating tensor, got torch.uint8"),
}


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_image_is_refused(case: str, tiny: Callable[..., ViTAdapter]) -> None:
    bad, message = BAD_IMAGES[case]
    with pytest.raises(ValueError, match=message):
        tiny()(bad)
