# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN in detectron2: by key-value config and by LazyConfig; the backbone alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_cases import adapted, official, saved
from photos import CLASSES, H, write_coco
from tiny import TINY, WINDOWED
from torch import Tensor, nn

pytest.importorskip("detectron2")

from detectron2.config import LazyConfig, get_cfg, instantiate  # noqa: E402
from detectron2.data import DatasetMapper  # noqa: E402
from detectron2.data.datasets import load_coco_json  # noqa: E402
from detectron2.layers import ShapeSpec  # noqa: E402
from detectron2.modeling import build_backbone, build_model  # noqa: E402
from detectron2.modeling.backbone import FPN, Backbone  # noqa: E402
from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate  # noqa: E402
from detectron2.solver import LRMultiplier, get_default_optimizer_params  # noqa: E402
from fvcore.common.param_scheduler import ConstantParamScheduler  # noqa: E402

import vitadapter_fast  # noqa: E402
from vitadapter_fast.commands.configs import config_path  # noqa: E402
from vitadapter_fast.integrations.detectron2 import (  # noqa: E402
    ViTAdapter,
    add_vit_adapter_config,
    get_vit_adapter_lr_decay_rate,
)
from vitadapter_fast.optim import layer_decay_groups  # noqa: E402
from vitadapter_fast.presets import DINOV3_PRESETS, PRESETS  # noqa: E402

SIZES = {"small": "s", "base": "b", "large": "l", "giant": "g"}
BACKBONE_PARAMETERS = {
    "small": 27_954_320,
    "base": 100_396_256,
    "large": 327_785_664,
    "giant": 1_187_112_064,
}
WIDTH = 32


def recipe(size: str) -> Any:
    return LazyConfig.load(
        str(config_path(f"detectron2/mask_rcnn_dinov2_adapter_{size}_fpn_3x_coco"))
    )


def narrow(model: Any) -> Any:
    """Narrow the heads of a LazyConfig's model, and start from no file."""
    model.backbone.bottom_up.pretrained = None
    model.backbone.out_channels = WIDTH
    model.proposal_generator.head.in_channels = WIDTH
    model.proposal_generator.post_nms_topk = (50, 50)
    heads = model.roi_heads
    heads.num_classes = len(CLASSES)
    heads.batch_size_per_image = 32
    heads.box_head.input_shape.channels = WIDTH
    heads.box_head.fc_dims = [WIDTH, WIDTH]
    heads.box_predictor.input_shape.channels = WIDTH
    heads.box_predictor.test_score_thresh = 0.0
    heads.mask_head.input_shape.channels = WIDTH
    heads.mask_head.conv_dims = [WIDTH, WIDTH]
    return model


def key_value_config(**overrides: Any) -> Any:
    cfg = get_cfg()
    add_vit_adapter_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = "build_vit_adapter_fpn_backbone"
    cfg.MODEL.VIT_ADAPTER.OVERRIDES.merge_from_other_cfg(type(cfg)({**WINDOWED, **overrides}))
    return cfg


def batches(folder: Path, mapper: Any) -> list[list[dict[str, Any]]]:
    photos = load_coco_json(str(write_coco(folder)), str(folder))
    mapped = [mapper(photo) for photo in photos]
    return [mapped[:2], mapped[2:]]


@pytest.mark.parametrize("size", SIZES)
def test_recipe_states_the_published_settings(size: str) -> None:
    config, preset = recipe(size), PRESETS[SIZES[size]]
    bottom_up = config.model.backbone.bottom_up
    assert bottom_up.drop_path_rate == preset.drop_path_rate
    assert config.optimizer.params.layer_decay == preset.layer_decay
    assert (config.optimizer.lr, config.optimizer.weight_decay) == (1e-4, 0.05)
    assert config.model.input_format == config.dataloader.train.mapper.image_format == "RGB"
    assert config.train.max_iter == 270_000
    bottom_up.pretrained = None
    with torch.device("meta"):
        backbone = instantiate(config.model.backbone)
    assert isinstance(backbone.bottom_up, ViTAdapter)
    count = sum(parameter.numel() for parameter in backbone.bottom_up.parameters())
    assert count == BACKBONE_PARAMETERS[size]


@pytest.mark.parametrize("kind", ["", "_tuned"], ids=["own", "tuned"])
@pytest.mark.parametrize("size", ["small", "base", "large"])
def test_recipe_on_dinov3_states_the_preset(size: str, kind: str) -> None:
    name = f"detectron2/mask_rcnn_dinov3_adapter_{size}{kind}_fpn_3x_coco"
    config, preset = LazyConfig.load(str(config_path(name))), DINOV3_PRESETS[SIZES[size]]
    bottom_up = config.model.backbone.bottom_up
    assert config.optimizer.params.layer_decay == (preset.layer_decay if kind else 1.0)
    assert bottom_up.pretrained == f"dinov3_vit{SIZES[size]}16"
    keywords = preset.model_kwargs(injectors=kind == "_tuned")
    assert {key: bottom_up[key] for key in keywords} == keywords


def test_lazy_recipe_trains_and_infers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = recipe("small")
    mapper = config.dataloader.train.mapper
    for resize in (mapper.augmentations[1].tfm_or_aug.augs[0], mapper.augmentations[2]):
        resize.short_edge_length = [96, 112]
    mapper.augmentations[1].tfm_or_aug.augs[1].crop_size = (72, 96)
    data = batches(tmp_path, instantiate(mapper))
    model = instantiate(narrow(config.model))
    assert sum(p.numel() for p in model.backbone.bottom_up.parameters()) == 27_954_320
    config.optimizer.params.model = model
    optimizer = instantiate(config.optimizer)
    losses = train(model, optimizer, [data[step % 2] for step in range(6)])
    assert sum(losses[-2:]) < sum(losses[:2])
    check_inference(model)


def test_key_value_config_trains_and_infers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    cfg = key_value_config()
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    cfg.MODEL.FPN.OUT_CHANNELS = WIDTH
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16], [32], [64], [128], [256]]
    cfg.MODEL.MASK_ON = True
    heads = {
        "ROI_HEADS": {
            "NAME": "StandardROIHeads",
            "IN_FEATURES": ["p2", "p3", "p4", "p5"],
            "NUM_CLASSES": len(CLASSES),
            "BATCH_SIZE_PER_IMAGE": 32,
            "SCORE_THRESH_TEST": 0.0,
        },
        "ROI_BOX_HEAD": {
            "NAME": "FastRCNNConvFCHead",
            "NUM_FC": 1,
            "FC_DIM": WIDTH,
            "POOLER_RESOLUTION": 7,
        },
        "ROI_MASK_HEAD": {
            "NAME": "MaskRCNNConvUpsampleHead",
            "NUM_CONV": 1,
            "CONV_DIM": WIDTH,
            "POOLER_RESOLUTION": 14,
        },
    }
    for node, values in heads.items():
        for key, value in values.items():
            cfg.MODEL[node][key] = value
    cfg.INPUT.MIN_SIZE_TRAIN = (H,)
    model = build_model(cfg)
    assert isinstance(model.backbone, FPN)
    groups = layer_decay_groups(model, lr=1e-3, weight_decay=0.05, layer_decay=0.7)
    data = batches(tmp_path, DatasetMapper(cfg, is_train=True))
    losses = train(model, torch.optim.AdamW(groups), [data[step % 2] for step in range(6)])
    assert sum(losses[-2:]) < sum(losses[:2])
    check_inference(model)


def train(model: nn.Module, optimizer: Any, data: list[list[dict[str, Any]]]) -> list[float]:
    """One step for each batch; return the losses."""
    from detectron2.utils.events import EventStorage

    losses = []
    model.train()
    with EventStorage():
        for batch in data:
            loss = sum(model(batch).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


def check_inference(model: nn.Module) -> None:
    """Boxes and masks come in the size that was asked for."""
    model.eval()
    photo = {
        "image": torch.randint(0, 255, (3, 70, 101), dtype=torch.uint8),
        "height": 35,
        "width": 50,
    }
    with torch.no_grad():
        (result,) = model([photo])
    found = result["instances"]
    assert len(found) > 0 and found.pred_masks.shape[1:] == (35, 50)
    assert found.pred_boxes.tensor.isfinite().all() and found.pred_boxes.tensor.max() <= 50


def test_backbone_follows_detectron2s_conventions() -> None:
    torch.manual_seed(0)
    backbone = ViTAdapter(**WINDOWED).eval()
    plain = vitadapter_fast.ViTAdapter(**WINDOWED).eval()
    plain.load_state_dict(backbone.state_dict())
    image = torch.randn(1, 3, 64, 96)
    maps = backbone(image)
    assert isinstance(backbone, Backbone) and list(maps) == ["res2", "res3", "res4", "res5"]
    shapes = backbone.output_shape()
    for (name, out), theirs in zip(maps.items(), plain(image), strict=True):
        assert torch.equal(out, theirs)
        assert shapes[name] == ShapeSpec(channels=32, stride=64 // out.shape[2])
    assert backbone.size_divisibility == 32
    assert backbone.padding_constraints == {"size_divisibility": 32, "square_size": 0}


def test_registry_builds_the_backbone_alone_with_overrides() -> None:
    cfg = key_value_config(frozen_vit=True)
    cfg.MODEL.BACKBONE.NAME = "build_vit_adapter_backbone"
    cfg.MODEL.VIT_ADAPTER.OUT_FEATURES = ["res3", "res4"]
    backbone = build_backbone(cfg)
    assert isinstance(backbone, ViTAdapter) and backbone.has_frozen_vit
    assert list(backbone.output_shape()) == ["res3", "res4"]


def test_every_trainable_parameter_gets_a_gradient() -> None:
    backbone = ViTAdapter(**TINY, init_values=1.0, out_features=["res3", "res4"])
    sum(out.square().sum() for out in backbone(torch.randn(2, 3, 64, 64)).values()).backward()
    assert all((p.grad is not None) is p.requires_grad for p in backbone.parameters())


def test_config_merges_from_yaml(tmp_path: Path) -> None:
    path = tmp_path / "adapter.yaml"
    path.write_text(
        "MODEL: {VIT_ADAPTER: {SIZE: b, PRETRAINED: x.pth, OVERRIDES: {drop_path_rate: 0.1}}}"
    )
    cfg = get_cfg()
    add_vit_adapter_config(cfg)
    cfg.merge_from_file(str(path))
    assert cfg.MODEL.VIT_ADAPTER.SIZE == "b"
    assert cfg.MODEL.VIT_ADAPTER.OVERRIDES.drop_path_rate == 0.1
    assert cfg.INPUT.FORMAT == "RGB" and cfg.MODEL.PIXEL_STD == [58.395, 57.12, 57.375]


def test_pretrained_key_loads_a_dinov2_file(tmp_path: Path) -> None:
    tensors: dict[str, Tensor] = official(patch=16)
    cfg = key_value_config()
    cfg.MODEL.VIT_ADAPTER.PRETRAINED = str(saved(tensors, tmp_path / "dinov2.pth"))
    state = build_backbone(cfg).bottom_up.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in adapted(tensors).items())


@pytest.mark.parametrize("prefix", ["backbone.", "backbone.bottom_up."])
def test_decay_rate_agrees_with_detectron2s_own(prefix: str) -> None:
    for name, _ in ViTAdapter(**TINY).named_parameters():
        ours = get_vit_adapter_lr_decay_rate(prefix + name, 0.5, 4)
        assert ours == get_vit_lr_decay_rate(prefix + name, 0.5, 4)
    assert get_vit_adapter_lr_decay_rate("proposal_generator.conv.weight", 0.5, 4) == 1.0


def test_decay_rate_serves_detectron2s_parameter_groups() -> None:
    model = nn.Module()
    model.backbone = ViTAdapter(**TINY)
    groups = get_default_optimizer_params(
        model,
        base_lr=1.0,
        lr_factor_func=lambda name: get_vit_adapter_lr_decay_rate(name, 0.5, 4),
        overrides={"pos_embed": {"weight_decay": 0.0}},
    )
    (group,) = (g for g in groups if any(p is model.backbone.pos_embed for p in g["params"]))
    assert (group["lr"], group["weight_decay"]) == (0.5**5, 0.0)


def test_schedule_of_detectron2_takes_the_groups_beside_ones_own() -> None:
    model = nn.Module()
    model.backbone = ViTAdapter(**TINY)
    groups = layer_decay_groups(model, lr=1.0, weight_decay=0.05, layer_decay=0.5)
    own = get_default_optimizer_params(nn.Linear(2, 2), base_lr=0.1)
    optimizer = torch.optim.AdamW([*groups, *own])
    first = [group["lr"] for group in optimizer.param_groups]
    LRMultiplier(optimizer, ConstantParamScheduler(0.5), max_iter=9)
    now = [group["lr"] for group in optimizer.param_groups]
    assert now == pytest.approx([0.5 * rate for rate in first]) and len(now) > len(groups)


@pytest.mark.parametrize(
    ("wrong", "kind", "message"),
    [
        ({"embed_dims": 32}, TypeError, "ViTAdapter: unknown keyword 'embed_dims' .did you mean"),
        ({"out_features": ["res1"]}, ValueError, r"out_features must be some of .*got \['res1'\]"),
        ({"out_features": ["res4", "res3"]}, ValueError, "in this order"),
        ({"out_features": []}, ValueError, r"got \[\]"),
    ],
)
def test_wrong_setting_is_answered_with_the_remedy(
    wrong: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        ViTAdapter(**{**TINY, **wrong})


def test_config_without_the_keys_says_what_to_call() -> None:
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_vit_adapter_backbone"
    with pytest.raises(ValueError, match="call .*add_vit_adapter_config"):
        build_backbone(cfg)


def test_unknown_size_is_refused() -> None:
    cfg = key_value_config()
    cfg.MODEL.VIT_ADAPTER.SIZE = "xl"
    with pytest.raises(ValueError, match="size must be one of s, b, l, g, dinov3-t, .* got 'xl'"):
        build_backbone(cfg)
