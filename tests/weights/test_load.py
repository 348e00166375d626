# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of every format load completely or not at all."""

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_cases import (
    DATA,
    KEY_LISTS,
    MODELS,
    adapted,
    as_hf,
    as_timm,
    assert_same,
    official,
    parametrize_models,
    published_size,
    saved,
    snapshot,
    tiny_model,
    trained,
    vit_shapes,
    with_registers,
)
from safetensors.torch import load_file
from torch import Tensor

from vitadapter_fast import CheckpointError, vit_adapter_s
from vitadapter_fast.weights import convert_14to16, load_checkpoint, resample_patch_kernel
from vitadapter_fast.weights.formats import recognize, to_adapter


@parametrize_models()
def test_published_names_and_shapes_map_onto_the_adapters_vit(name: str) -> None:
    size = MODELS[name.removesuffix("_reg4").split("_")[1]]
    tensors = {key: torch.empty(shape, device="meta") for key, shape in KEY_LISTS[name].items()}
    mapped, _ = to_adapter(recognize(tensors, name))
    shapes = {key: tuple(tensor.shape) for key, tensor in mapped.items()}
    assert shapes == vit_shapes(*size, num_positions=1370, patch=14)


@parametrize_models()
def test_published_format_is_recognized(name: str) -> None:
    tensors = {key: torch.empty(shape, device="meta") for key, shape in KEY_LISTS[name].items()}
    assert recognize(tensors, name).format == name.split("_")[0]


def test_published_small_file_loads_into_vit_adapter_s(tmp_path: Path) -> None:
    path = saved(published_size("official_small"), tmp_path / "small.pth")
    report = load_checkpoint(vit_adapter_s(), path)
    assert (report.loaded, report.resized) == (3 + 12 * 14, (14, 16))


NAMINGS: dict[str, Callable[[dict[str, Tensor]], dict[str, Any]]] = {
    "official": lambda tensors: tensors,
    "official_chunked": lambda tensors: {
        name.replace("blocks.", f"blocks.{'blocks.2.' in name:d}."): tensor
        for name, tensor in tensors.items()
    },
    "official_teacher": lambda tensors: {
        "teacher": {f"backbone.{name}": tensor for name, tensor in tensors.items()}
    },
    "hf_old_names": as_hf,
    "hf_new_names": lambda tensors: as_hf(tensors, has_new_names=True),
    "timm": as_timm,
    "converted": lambda tensors: {
        name.replace("ls1.gamma", "gamma1").replace("ls2.gamma", "gamma2"): tensor
        for name, tensor in tensors.items()
        if name != "mask_token"
    },
}


@pytest.mark.parametrize("is_swiglu", [False, True], ids=["mlp", "swiglu"])
@pytest.mark.parametrize("naming", NAMINGS)
def test_every_vit_weight_arrives(naming: str, is_swiglu: bool, tmp_path: Path) -> None:
    tensors = official(patch=16, is_swiglu=is_swiglu)
    model = tiny_model(ffn="swiglu" if is_swiglu else "mlp")
    load_checkpoint(model, saved(NAMINGS[naming](tensors), tmp_path / "vit.pth"))
    wanted = adapted(tensors)
    assert_same({name: model.state_dict()[name] for name in wanted}, wanted)


def test_file_format_safetensors_carries_the_same_weights(tmp_path: Path) -> None:
    tensors = official(patch=16)
    model = tiny_model()
    load_checkpoint(model, saved(as_hf(tensors), tmp_path / "model.safetensors"))
    wanted = adapted(tensors)
    assert_same({name: model.state_dict()[name] for name in wanted}, wanted)


def test_vit_file_leaves_the_adapter_as_it_is(tmp_path: Path) -> None:
    model = tiny_model()
    before = snapshot(model)
    load_checkpoint(model, saved(official(), tmp_path / "vit.pth"))
    own = {name for name in before if name not in adapted(official())}
    after = model.state_dict()
    assert_same({name: after[name] for name in own}, {name: before[name] for name in own})


def test_vit_file_changes_no_random_state(tmp_path: Path) -> None:
    model, path = tiny_model(), saved(official(), tmp_path / "vit.pth")
    before = torch.get_rng_state()
    load_checkpoint(model, path)
    assert torch.equal(torch.get_rng_state(), before)


def test_timm_register_file_gets_a_zero_row_for_the_cls_position(tmp_path: Path) -> None:
    tensors = with_registers(official(patch=16))
    model = tiny_model()
    load_checkpoint(model, saved(as_timm(tensors), tmp_path / "timm.pth"))
    wanted = torch.cat([torch.zeros(1, 1, 32), tensors["pos_embed"][:, 1:]], dim=1)
    assert torch.equal(model.pos_embed, wanted)


@pytest.mark.parametrize("prefix", ["dinov2.", "dinov2_with_registers."])
def test_hugging_face_task_head_is_ignored(prefix: str, tmp_path: Path) -> None:
    tensors = as_hf(official(patch=16), prefix=prefix)
    tensors["classifier.weight"] = torch.ones(3, 64)
    report = load_checkpoint(tiny_model(), saved(tensors, tmp_path / "task.pth"))
    assert "classifier.weight" in report.dropped


def test_registers_are_dropped_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load_checkpoint(tiny_model(), saved(with_registers(official()), tmp_path / "reg.pth"))
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert ["register tokens" in record.getMessage() for record in warnings] == [True]


def test_ignored_heads_are_reported_in_one_notice(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = {f"backbone.{name}": tensor for name, tensor in trained().items()}
    state |= {"neck.conv.weight": torch.ones(1), "bbox_head.fc.weight": torch.ones(1)}
    path = saved({"meta": {}, "state_dict": state}, tmp_path / "detector.pth")
    with caplog.at_level(logging.INFO, "vitadapter_fast"):
        load_checkpoint(tiny_model(), path)
    notices = [message for message in caplog.messages if "neck.conv.weight" in message]
    assert ["bbox_head.fc.weight" in notice for notice in notices] == [True]


def test_report_tells_what_was_done(tmp_path: Path) -> None:
    path = saved(official(), tmp_path / "vit.pth")
    model = tiny_model()
    report = load_checkpoint(model, path)
    loaded = 3 + 4 * 14
    assert (report.format, report.path, report.loaded) == ("official", path, loaded)
    assert report.missing == len(model.state_dict()) - loaded
    assert set(report.dropped) == {"cls_token", "mask_token", "norm.weight", "norm.bias"}
    assert report.resized == (14, 16)


@pytest.mark.parametrize("prefix", ["", "backbone.", "module.backbone."])
def test_trained_checkpoint_fills_the_whole_model(prefix: str, tmp_path: Path) -> None:
    state = trained()
    content = {
        "meta": {"CLASSES": ("cell",), "epoch": 3},
        "state_dict": {prefix + name: tensor for name, tensor in state.items()},
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}},
    }
    model = tiny_model()
    load_checkpoint(model, saved(content, tmp_path / "epoch_3.pth"))
    assert_same(dict(model.state_dict()), state)


@pytest.mark.parametrize("name", ["tiny_ratio05_global", "tiny_ratio1_window", "tiny_segmentation"])
def test_names_of_the_original_are_recognized_as_a_trained_checkpoint(name: str) -> None:
    golden = load_file(DATA / "golden" / f"{name}.safetensors")
    state = {key[6:]: tensor for key, tensor in golden.items() if key.startswith("param.")}
    recognized = recognize(state, name)
    assert (recognized.format, recognized.tensors.keys()) == ("upstream", state.keys())


def test_trained_checkpoint_may_lack_batch_counts(tmp_path: Path) -> None:
    state = {name: t for name, t in trained().items() if "num_batches_tracked" not in name}
    report = load_checkpoint(tiny_model(), saved(state, tmp_path / "old.pth"))
    assert report.loaded == len(state)


def test_trained_checkpoint_may_lack_nothing_else(tmp_path: Path) -> None:
    state = trained()
    del state["spm.stem.1.running_mean"]
    with pytest.raises(CheckpointError, match=r"missing \(1\): spm\.stem\.1\.running_mean$"):
        load_checkpoint(tiny_model(), saved(state, tmp_path / "cut.pth"))


def test_trained_checkpoint_of_other_input_channels_is_not_adapted(tmp_path: Path) -> None:
    path = saved(trained(), tmp_path / "rgb.pth")
    with pytest.raises(CheckpointError, match="the file has 3 input channels, the model 4"):
        load_checkpoint(tiny_model(in_chans=4), path)


def test_checkpoint_with_training_logs_loads_without_their_classes(tmp_path: Path) -> None:
    module = ModuleType("mmengine.logging.history_buffer")
    history = type("HistoryBuffer", (), {"__module__": module.__name__})
    module.HistoryBuffer = history  # type: ignore[attr-defined]
    names = ["mmengine", "mmengine.logging", module.__name__]
    assert not any(name in sys.modules for name in names)
    buffer = history()
    buffer.log = np.arange(3.0)
    content = {
        "state_dict": {f"backbone.{name}": tensor for name, tensor in trained().items()},
        "message_hub": {"log_scalars": {"loss": buffer}, "mean": np.float64(0.5)},
        "args": argparse.Namespace(lr=1e-4, output_dir=Path("work_dirs")),
    }
    sys.modules.update(zip(names, [ModuleType("mmengine"), ModuleType("m"), module], strict=True))
    try:
        path = saved(content, tmp_path / "epoch_1.pth")
    finally:
        for name in names:
            del sys.modules[name]
    assert load_checkpoint(tiny_model(), path).format == "upstream"


@pytest.mark.parametrize("method", ["bilinear", "pi"])
def test_loading_resizes_the_kernel_by_the_named_method(method: Any, tmp_path: Path) -> None:
    tensors, model = official(), tiny_model()
    load_checkpoint(model, saved(tensors, tmp_path / "vit.pth"), patch_method=method)
    wanted = resample_patch_kernel(tensors["patch_embed.proj.weight"], 16, method)
    assert torch.equal(model.state_dict()["patch_embed.proj.weight"], wanted)


def test_one_channel_gets_the_sum_over_rgb(tmp_path: Path) -> None:
    tensors, model = official(patch=16), tiny_model(in_chans=1)
    load_checkpoint(model, saved(tensors, tmp_path / "vit.pth"))
    wanted = tensors["patch_embed.proj.weight"].sum(dim=1, keepdim=True)
    assert torch.equal(model.state_dict()["patch_embed.proj.weight"], wanted)


def test_five_channels_get_rgb_in_turn_scaled_by_three_fifths(tmp_path: Path) -> None:
    tensors, model = official(patch=16), tiny_model(in_chans=5)
    load_checkpoint(model, saved(tensors, tmp_path / "vit.pth"))
    wanted = tensors["patch_embed.proj.weight"][:, [0, 1, 2, 0, 1]] * 0.6
    torch.testing.assert_close(model.state_dict()["patch_embed.proj.weight"], wanted)


def refusal(tensors: Any, tmp_path: Path, **overrides: Any) -> str:
    """Message with which a model refuses tensors; the model must stay as it was."""
    model = tiny_model(**overrides)
    before = snapshot(model)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(model, saved(tensors, tmp_path / "refused.pth"))
    assert_same(dict(model.state_dict()), before)
    return str(caught.value)


def test_all_faults_are_listed_in_one_error(tmp_path: Path) -> None:
    tensors = official()
    del tensors["blocks.3.attn.qkv.bias"]
    tensors["blocks.1.mlp.fc1.bias"] = torch.ones(5)
    tensors["extra.weight"] = torch.ones(2, 2)
    message = refusal(tensors, tmp_path)
    assert "missing (1): blocks.3.attn.qkv.bias" in message
    assert "unexpected (1): extra.weight" in message
    assert "wrong shape (1): blocks.1.mlp.fc1.bias is (5,) for (128,)" in message


def test_long_lists_are_cut_at_twenty(tmp_path: Path) -> None:
    tensors = official() | {f"extra.{index}": torch.ones(1) for index in range(50)}
    message = refusal(tensors, tmp_path)
    assert "extra.19, ... and 30 more" in message
    assert "extra.20" not in message


def test_other_model_size_is_named(tmp_path: Path) -> None:
    message = refusal(published_size("official_base"), tmp_path)
    assert (
        "the file is a DINOv2 ViT-B (embed_dim 768, 12 blocks); "
        "the model is a ViT (embed_dim 32, 4 blocks)"
    ) in message


@pytest.mark.parametrize("name", ["patch_embed.proj.weight", "blocks.2.attn.qkv.weight"])
def test_integer_weights_are_not_converted(name: str) -> None:
    tensors = official()
    tensors[name] = tensors[name].to(torch.int8)
    with pytest.raises(CheckpointError, match=rf"no floating numbers: {name} int8$"):
        convert_14to16(tensors)


def test_integer_weights_are_refused(tmp_path: Path) -> None:
    tensors = official()
    tensors["blocks.0.attn.proj.weight"] = torch.ones(32, 32, dtype=torch.int8)
    assert "blocks.0.attn.proj.weight is (32, 32) int8 for (32, 32)" in refusal(tensors, tmp_path)


def test_hugging_face_file_without_keys_is_refused(tmp_path: Path) -> None:
    tensors = as_hf(official())
    del tensors["encoder.layer.2.attention.attention.key.weight"]
    message = refusal(tensors, tmp_path)
    assert "missing (1): blocks.2.attn.qkv.weight" in message
    assert "encoder.layer.2.attention.attention.query.weight" in message


@pytest.mark.parametrize("shape", [(), (32,), (32, 31), (0, 32), (32, 32, 1)])
@pytest.mark.parametrize("part", ["attention.query", "attention.key", "attention.value"])
def test_hugging_face_file_whose_parts_do_not_join_is_refused(
    part: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    name = f"encoder.layer.2.attention.{part}.weight"
    message = refusal(as_hf(official()) | {name: torch.ones(shape)}, tmp_path)
    assert "blocks.2.attn.qkv.weight" in message


@pytest.mark.parametrize("shape", [(2, 16, 32), (16, 32), (1, 16, 31), (1, 0, 32)])
def test_timm_file_with_another_kind_of_position_table_is_refused(
    shape: tuple[int, ...], tmp_path: Path
) -> None:
    tensors = as_timm(with_registers(official())) | {"pos_embed": torch.ones(shape)}
    assert "pos_embed is" in refusal(tensors, tmp_path)


def test_hugging_face_file_with_old_and_new_names_is_refused(tmp_path: Path) -> None:
    name = "encoder.layer.2.attention.q_proj.weight"
    tensors = as_hf(official()) | {name: torch.ones(32, 32)}
    assert f"unexpected (1): {name}" in refusal(tensors, tmp_path)


def test_hugging_face_file_with_two_swiglu_namings_is_refused(tmp_path: Path) -> None:
    name = "encoder.layer.2.mlp.up_proj.weight"
    tensors = as_hf(official(is_swiglu=True)) | {name: torch.ones(88, 32)}
    message = refusal(tensors, tmp_path, ffn="swiglu")
    assert message.endswith(f"unexpected (1): {name}")


def test_file_of_another_network_is_refused(tmp_path: Path) -> None:
    message = refusal({"layer1.0.conv1.weight": torch.ones(1)}, tmp_path)
    assert "not a DINOv2, DINOv3 or ViT-Adapter checkpoint" in message
    assert "layer1.0.conv1.weight" in message


def test_file_with_two_vits_is_refused(tmp_path: Path) -> None:
    tensors = {
        f"{who}.backbone.{name}": t
        for who in ("student", "teacher")
        for name, t in official().items()
    }
    assert "several ViTs (student.backbone.patch_embed" in refusal(tensors, tmp_path)


def test_model_on_the_meta_device_is_refused(tmp_path: Path) -> None:
    path = saved(official(), tmp_path / "vit.pth")
    with torch.device("meta"):
        model = tiny_model()
    with pytest.raises(CheckpointError, match="meta device"):
        load_checkpoint(model, path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_model_keeps_its_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors, model = official(), tiny_model().to(dtype)
    load_checkpoint(model, saved(tensors, tmp_path / "vit.pth"))
    loaded = model.state_dict()["blocks.0.attn.qkv.weight"]
    assert torch.equal(loaded, tensors["blocks.0.attn.qkv.weight"].to(dtype))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_model_on_a_gpu_stays_there(tmp_path: Path) -> None:
    tensors, model = official(), tiny_model().cuda()
    load_checkpoint(model, saved(tensors, tmp_path / "vit.pth"))
    loaded = model.state_dict()["blocks.0.attn.qkv.weight"]
    assert torch.equal(loaded, tensors["blocks.0.attn.qkv.weight"].cuda())
