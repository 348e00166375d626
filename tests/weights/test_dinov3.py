# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""DINOv3 files of every naming, size and wrapping load to the same model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_cases import assert_same, saved, snapshot
from dinov3_cases import (
    DINOV3_KEYS,
    FFNS,
    GOLDEN,
    dinov3_model,
    expected,
    golden,
    golden_adapter,
    on_meta,
    under,
    whole_adapter,
)
from safetensors.torch import save_file
from torch import Tensor

from vitadapter_fast import CheckpointError
from vitadapter_fast.weights import convert_14to16, load_checkpoint
from vitadapter_fast.weights.formats import recognize
from vitadapter_fast.weights.load import fit


def loaded(content: Any, tmp_path: Path, **overrides: Any) -> dict[str, Tensor]:
    model = dinov3_model(**overrides)
    load_checkpoint(model, saved(content, tmp_path / "file.pth"))
    return dict(model.state_dict())


@pytest.mark.parametrize("ffn", FFNS)
@pytest.mark.parametrize("format", ["official", "hf", "timm"])
def test_format_fills_the_vit_bit_for_bit(format: str, ffn: str, tmp_path: Path) -> None:
    before = snapshot(dinov3_model(**FFNS[ffn]))
    state = loaded(golden(format, ffn), tmp_path, **FFNS[ffn])
    wanted = expected(golden("official", ffn))
    assert len(wanted) == 90
    assert_same(state, {**before, **wanted})


@pytest.mark.parametrize(
    ("file", "format"),
    [
        ("dinov3_tiny_mlp_official.pth", "official"),
        ("dinov3_tiny_mlp_hf.safetensors", "hf"),
        ("dinov3_tiny_mlp_timm.safetensors", "timm"),
    ],
)
def test_report_tells_format_dropped_and_periods(file: str, format: str) -> None:
    report = load_checkpoint(dinov3_model(), GOLDEN / file)
    assert (report.format, report.loaded, report.missing) == (format, 90, 187)
    assert report.dropped == (() if format == "timm" else ("mask_token",))
    assert (report.rope_periods, report.resized) == ("bfloat16", None)


# Size -> names of its models; "l+" is in the hub's code alone.
SIZES = {
    "s": ("vits16", "vit_small_patch16"),
    "s+": ("vits16plus", "vit_small_plus_patch16"),
    "b": ("vitb16", "vit_base_patch16"),
    "l": ("vitl16", "vitl16_sat", "vit_large_patch16"),
    "l+": ("vitl16plus",),
    "h+": ("vith16plus", "vit_huge_plus_patch16"),
    "7b": ("vit7b16", "vit_7b_patch16"),
    "t": ("vit_tiny_patch16",),
}


# One of each naming and feed-forward in the core, for which all others take a minute.
_QUICK = ("official_vits16", "hf_vits16plus", "timm_vit_small_patch16_dinov3_qkvb")
PUBLISHED = [
    pytest.param(name, marks=() if name in _QUICK else pytest.mark.thorough)
    for name in sorted(DINOV3_KEYS)
]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_file_of_every_size_fits_a_model_of_that_size(name: str) -> None:
    format, model_name = name.split("_", 1)
    tensors = {key: torch.empty(shape, device="meta") for key, shape in DINOV3_KEYS[name].items()}
    recognized = recognize(tensors, name)
    assert (recognized.format, recognized.is_dinov3) == (format, True)
    stem = model_name.split("_dinov3")[0]
    model = on_meta(next(size for size, names in SIZES.items() if stem in names))
    fitted = fit(recognized, model, Path(name), "bilinear")
    state = model.state_dict()
    shapes = {key: tuple(tensor.shape) for key, tensor in fitted.tensors.items()}
    of_vit = {key: tuple(state[key].shape) for key in state if key not in golden_adapter()}
    assert shapes == of_vit
    assert not fitted.ignored
    assert {each.split(".")[0] for each in fitted.unused} <= {"mask_token", "local_cls_norm"}


@pytest.mark.parametrize("prefix", ["", "backbone.", "dinov3_vit."])
@pytest.mark.parametrize("is_long", [False, True])
def test_hugging_face_names_of_the_hub_and_of_state_dicts_load(
    is_long: bool, prefix: str, tmp_path: Path
) -> None:
    tensors = {
        prefix + (name.replace("layer.", "model.layer.", 1) if is_long else name): tensor
        for name, tensor in golden("hf").items()
    }
    tensors["classifier.weight"] = torch.ones(2, 48)
    model = dinov3_model()
    report = load_checkpoint(model, saved(tensors, tmp_path / "hf.pth"))
    assert "classifier.weight" in report.dropped
    assert_same(dict(model.state_dict()), loaded(golden("official"), tmp_path))


def test_hugging_face_folder_in_shards_loads(tmp_path: Path) -> None:
    tensors = golden("hf", "swiglu")
    names = list(tensors)
    shards = {f"model-0000{i}-of-00002.safetensors": names[i - 1 :: 2] for i in (1, 2)}
    for shard, held in shards.items():
        save_file({name: tensors[name] for name in held}, tmp_path / shard)
    index = {"weight_map": {name: shard for shard, held in shards.items() for name in held}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    model = dinov3_model(**FFNS["swiglu"])
    load_checkpoint(model, tmp_path)
    wanted = expected(golden("official", "swiglu"))
    assert_same({name: model.state_dict()[name] for name in wanted}, wanted)


def test_training_checkpoint_gives_its_teacher_without_heads(tmp_path: Path) -> None:
    heads = {"dino_head.last_layer.weight": torch.ones(2), "ibot_head.mlp.0.weight": torch.ones(2)}
    content = {"teacher": under("backbone.", golden("official")) | heads, "iteration": 3}
    model = dinov3_model()
    report = load_checkpoint(model, saved(content, tmp_path / "teacher.pth"))
    assert (report.taken, set(heads) <= set(report.dropped)) == ("teacher", True)
    assert_same(dict(model.state_dict()), loaded(golden("official"), tmp_path))


def test_projectors_beside_a_vit_are_dropped_and_reported(tmp_path: Path) -> None:
    projectors = {"projectors.a.0.weight": torch.ones(2), "projectors.b.0.weight": torch.ones(2)}
    path = saved(golden("official") | projectors, tmp_path / "eupe.pth")
    assert set(projectors) <= set(load_checkpoint(dinov3_model(), path).dropped)


def test_norm_of_local_crops_is_dropped_and_reported(tmp_path: Path) -> None:
    norms = {"local_cls_norm.weight": torch.ones(48), "local_cls_norm.bias": torch.ones(48)}
    path = saved(golden("official") | norms, tmp_path / "sat.pth")
    report = load_checkpoint(dinov3_model(), path)
    assert set(report.dropped) == {"mask_token", *norms}


def test_final_norm_is_dropped_where_the_model_has_none(tmp_path: Path) -> None:
    path = saved(golden("official"), tmp_path / "vit.pth")
    report = load_checkpoint(dinov3_model(final_norm=False), path)
    assert set(report.dropped) == {"mask_token", "norm.weight", "norm.bias"}


def test_untied_norm_of_the_cls_token_is_refused(tmp_path: Path) -> None:
    path = saved(golden("official") | {"cls_norm.weight": torch.ones(48)}, tmp_path / "untied.pth")
    with pytest.raises(CheckpointError, match="norm of its own for the cls token") as caught:
        load_checkpoint(dinov3_model(), path)
    assert "unexpected (1): cls_norm.weight" in str(caught.value)


@pytest.mark.parametrize("prefix", ["", "backbone.", "module.", "segmentation_model.0."])
def test_whole_adapter_of_dinov3_fills_the_whole_model(prefix: str, tmp_path: Path) -> None:
    content = {"state_dict": under(prefix, whole_adapter()) | {"head.weight": torch.ones(3)}}
    model = dinov3_model()
    report = load_checkpoint(model, saved(content, tmp_path / "adapter.pth"))
    assert (report.format, report.loaded, report.missing) == ("dinov3_adapter", 277, 0)
    assert set(report.dropped) == {"mask_token", "head.weight"}
    assert_same(dict(model.state_dict()), golden_adapter() | expected(golden("official")))


def test_whole_adapter_wants_the_final_norm_and_no_injectors(tmp_path: Path) -> None:
    path = saved(whole_adapter(), tmp_path / "adapter.pth")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(dinov3_model(final_norm=False, injectors=True), path)
    assert "build the model with final_norm=True" in str(caught.value)
    assert "build the model with injectors=False" in str(caught.value)


def test_what_lies_beside_an_adapter_under_its_names_is_reported(tmp_path: Path) -> None:
    content = under("a.", whole_adapter()) | {"up.bias": torch.ones(48)}
    report = load_checkpoint(dinov3_model(), saved(content, tmp_path / "adapter.pth"))
    assert "up.bias" in report.dropped


def test_segmentor_without_a_vit_fills_the_adapter_alone(tmp_path: Path) -> None:
    head = {
        "segmentation_model.1.predictor.level_embed.weight": torch.ones(3),
        "segmentation_model.1.pixel_decoder.transformer.level_embed": torch.ones(3),
    }
    model = dinov3_model()
    load_checkpoint(model, saved(golden("official"), tmp_path / "vit.pth"))
    content = under("segmentation_model.0.", golden_adapter()) | head
    report = load_checkpoint(model, saved(content, tmp_path / "segmentor.pth"))
    assert (report.format, report.loaded, report.missing) == ("adapter", 187, 90)
    assert set(report.dropped) == set(head)
    assert_same(dict(model.state_dict()), golden_adapter() | expected(golden("official")))


@pytest.mark.parametrize("is_whole", [False, True])
def test_adapter_of_dinov3_wants_a_map_of_each_stage(is_whole: bool, tmp_path: Path) -> None:
    content = whole_adapter() if is_whole else golden_adapter()
    content = under("segmentation_model.0.", content) | {"segmentation_model.1.a": torch.ones(1)}
    path = saved(content, tmp_path / "adapter.pth")
    with pytest.raises(CheckpointError, match='build the model with vit_features="stages"$'):
        load_checkpoint(dinov3_model(vit_features="last"), path)
    load_checkpoint(dinov3_model(vit_features="last", add_vit_feature=False), path)


def test_adapter_of_another_size_is_refused(tmp_path: Path) -> None:
    path = saved(golden_adapter(), tmp_path / "adapter.pth")
    with pytest.raises(CheckpointError, match="this adapter checkpoint does not fit") as caught:
        load_checkpoint(dinov3_model(conv_inplane=16), path)
    assert "build the model with conv_inplane=8" in str(caught.value)


def test_two_adapters_without_a_vit_are_refused(tmp_path: Path) -> None:
    path = saved(
        under("a.", golden_adapter()) | under("b.", golden_adapter()), tmp_path / "two.pth"
    )
    with pytest.raises(CheckpointError, match=r"several adapters .*a\.level_embed, b\.level_embed"):
        load_checkpoint(dinov3_model(), path)


def test_own_state_dict_loads_back(tmp_path: Path) -> None:
    model = dinov3_model()
    load_checkpoint(model, saved(whole_adapter(), tmp_path / "adapter.pth"))
    report = load_checkpoint(other := dinov3_model(), saved(model.state_dict(), tmp_path / "own"))
    assert (report.format, report.missing) == ("upstream", 0)
    assert_same(dict(other.state_dict()), dict(model.state_dict()))


@pytest.mark.parametrize("format", ["official", "hf", "timm"])
def test_conversion_says_that_patches_are_16_already(format: str) -> None:
    with pytest.raises(CheckpointError, match="^vit.pth: a DINOv3 ViT, .* 16 already and loads as"):
        convert_14to16(golden(format), source="vit.pth")
