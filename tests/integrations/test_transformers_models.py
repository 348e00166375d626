# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Detectors and segmentors of transformers on the backbone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import save_file
from tiny import WINDOWED
from torch import Tensor, nn

transformers = pytest.importorskip("transformers")

from tiny_backbones import (  # noqa: E402
    IMAGE,
    TRUNKS,
    assert_equal,
    maps_of,
    tiny_backbone,
    tiny_config,
    trained_in,
)

from vitadapter_fast import ViTAdapter  # noqa: E402
from vitadapter_fast.errors import CheckpointError  # noqa: E402
from vitadapter_fast.integrations.transformers import (  # noqa: E402
    ViTAdapterBackbone,
    load_backbone_weights,
)


class Composite(NamedTuple):
    build: Callable[[], nn.Module]
    labels: Callable[[], dict[str, Any]]


def detection_labels() -> dict[str, Any]:
    boxes = torch.tensor([[0.5, 0.5, 0.4, 0.3], [0.3, 0.6, 0.2, 0.2]])
    return {"labels": [{"class_labels": torch.tensor([0, 1]), "boxes": boxes} for _ in range(2)]}


def mask_labels() -> dict[str, Any]:
    masks = torch.zeros(2, 96, 96)
    masks[0, :40, :50] = masks[1, 50:, 40:] = 1
    return {"mask_labels": [masks, masks], "class_labels": [torch.tensor([0, 1])] * 2}


def _mask2former() -> nn.Module:
    return transformers.Mask2FormerForUniversalSegmentation(
        transformers.Mask2FormerConfig(
            backbone_config=tiny_config(),
            feature_size=32,
            mask_feature_size=32,
            hidden_dim=32,
            encoder_feedforward_dim=32,
            dim_feedforward=32,
            encoder_layers=1,
            decoder_layers=2,
            num_attention_heads=4,
            num_queries=5,
            num_labels=2,
            train_num_points=64,
        )
    )


def _upernet() -> nn.Module:
    return transformers.UperNetForSemanticSegmentation(
        transformers.UperNetConfig(
            backbone_config=tiny_config(), hidden_size=32, auxiliary_in_channels=32, num_labels=3
        )
    )


_SMALL_RT_DETR = {
    "encoder_in_channels": [WINDOWED["embed_dim"]] * 3,
    "encoder_hidden_dim": 32,
    "encoder_ffn_dim": 32,
    "d_model": 32,
    "decoder_in_channels": [32] * 3,
    "decoder_ffn_dim": 32,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "encoder_attention_heads": 4,
    "num_queries": 5,
    "num_denoising": 0,
    "num_labels": 2,
}


def _rt_detr() -> nn.Module:
    backbone = tiny_config(out_indices=[1, 2, 3])
    config = transformers.RTDetrConfig(backbone_config=backbone, **_SMALL_RT_DETR)
    return transformers.RTDetrForObjectDetection(config)


def _d_fine() -> nn.Module:
    config = transformers.DFineConfig(
        backbone_config=tiny_config(out_indices=[1, 2, 3]),
        decoder_n_points=[2, 2, 2],
        **_SMALL_RT_DETR,
    )
    return transformers.DFineForObjectDetection(config)


_DETR = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "num_queries": 5,
    "num_labels": 2,
}


def _detr() -> nn.Module:
    backbone = tiny_config(out_indices=[3], frozen_vit=True)
    config = transformers.DetrConfig(backbone_config=backbone, **_DETR)
    return transformers.DetrForObjectDetection(config)


def _deformable_detr() -> nn.Module:
    config = transformers.DeformableDetrConfig(
        backbone_config=tiny_config(out_indices=[1, 2, 3]), num_feature_levels=4, **_DETR
    )
    return transformers.DeformableDetrForObjectDetection(config)


COMPOSITES = {
    "mask2former": Composite(_mask2former, mask_labels),
    "upernet": Composite(
        _upernet, lambda: {"labels": torch.arange(2 * 96 * 96).reshape(2, 96, 96) % 3}
    ),
    "rt_detr": Composite(_rt_detr, detection_labels),
    "d_fine": Composite(_d_fine, detection_labels),
    "detr": Composite(_detr, detection_labels),
    "deformable_detr": Composite(_deformable_detr, detection_labels),
}


def tensors_in(output: Any) -> list[Tensor]:
    """Of an output of transformers; its hidden states are tuples of tensors."""
    if isinstance(output, Tensor):
        return [output]
    values = output.values() if isinstance(output, dict) else output
    parts = values if isinstance(output, (dict, list, tuple)) else []
    return [tensor for part in parts for tensor in tensors_in(part)]


@pytest.mark.parametrize("name", COMPOSITES)
def test_a_model_of_transformers_trains_and_comes_back(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = COMPOSITES[name].build().train()
    backbone = next(each for each in model.modules() if isinstance(each, ViTAdapterBackbone))
    optimizer = torch.optim.AdamW(
        [each for each in model.parameters() if each.requires_grad], lr=1e-3
    )
    losses = []
    for _ in range(4):
        loss = model(pixel_values=IMAGE, **COMPOSITES[name].labels()).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(torch.isfinite(torch.tensor(losses))) and losses[-1] < losses[0]
    grads = [each.grad for each in backbone.parameters() if each.requires_grad]
    assert all(each is not None and each.isfinite().all() for each in grads)

    model.eval().save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    state, loaded = model.state_dict(), again.state_dict()
    assert state.keys() == loaded.keys()
    assert all(torch.equal(state[key], loaded[key]) for key in state)
    found = next(each for each in again.modules() if isinstance(each, ViTAdapterBackbone))
    assert_equal(maps_of(backbone), maps_of(found))
    assert trained_in(found) == trained_in(backbone)
    with torch.no_grad():
        one, other = (tensors_in(each(pixel_values=IMAGE)) for each in (model, again))
    # UperNet's own head differs by 7e-9 between two copies of the same weights.
    torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    assert one


@pytest.mark.parametrize("name", COMPOSITES)
def test_weights_come_into_the_backbone_of_a_model(name: str, tmp_path: Path) -> None:
    torch.manual_seed(5)
    trained = ViTAdapter(**TRUNKS["dinov2"])
    file = tmp_path / "adapter.safetensors"
    save_file(trained.state_dict(), file)
    model = COMPOSITES[name].build()
    report = load_backbone_weights(model, file)
    assert report.missing == 0
    backbone = next(each for each in model.modules() if isinstance(each, ViTAdapterBackbone))
    reached = dict(backbone.model.named_parameters())
    assert torch.equal(reached["blocks.1.attn.qkv.weight"], trained.blocks[1].attn.qkv.weight)


def test_weights_need_one_backbone(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must have one ViTAdapterBackbone inside, Linear has 0"):
        load_backbone_weights(nn.Linear(2, 2), tmp_path)
    with pytest.raises(CheckpointError):
        load_backbone_weights(tiny_backbone(), tmp_path / "none.safetensors")


def test_it_is_known_by_a_dict_of_its_settings() -> None:
    """As the config.json of a detector holds it."""
    settings = json.loads(tiny_config(out_indices=[3]).to_json_string())
    assert settings["model_type"] == "vit_adapter"
    config = transformers.DetrConfig(backbone_config=settings, **_DETR)
    model = transformers.DetrForObjectDetection(config)
    assert any(isinstance(each, ViTAdapterBackbone) for each in model.modules())
    alone = transformers.AutoBackbone.from_config(tiny_config())
    assert isinstance(alone, ViTAdapterBackbone)


def test_the_trainer_of_transformers_trains_it(tmp_path: Path) -> None:
    model = _detr()
    samples = [{"pixel_values": IMAGE[0], "labels": detection_labels()["labels"][0]}] * 4
    arguments = transformers.TrainingArguments(
        output_dir=tmp_path,
        max_steps=2,
        per_device_train_batch_size=2,
        gradient_checkpointing=True,
        use_cpu=True,
        report_to=[],
        save_strategy="steps",
        save_steps=2,
    )
    before = {name: each.clone() for name, each in model.state_dict().items()}
    trainer = transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=samples,
        data_collator=lambda each: {
            "pixel_values": torch.stack([sample["pixel_values"] for sample in each]),
            "labels": [sample["labels"] for sample in each],
        },
    )
    trainer.train()
    after = model.state_dict()
    assert any(not torch.equal(after[name], each) for name, each in before.items())
    again = type(model).from_pretrained(tmp_path / "checkpoint-2")
    assert_equal([*again.state_dict().values()], [*after.values()])
