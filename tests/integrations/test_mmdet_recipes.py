# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The packaged recipes for mmdet beyond Mask R-CNN: what they state, and that they train."""

from typing import Any

import pytest
import torch
from photos import CLASSES, H, W
from tiny import WINDOWED

pytest.importorskip("mmdet")

from mmdet.registry import MODELS  # noqa: E402
from mmdet.structures import DetDataSample  # noqa: E402
from mmdet.structures.mask import BitmapMasks  # noqa: E402
from mmdet.utils import register_all_modules  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.model import revert_sync_batchnorm  # noqa: E402
from mmengine.optim import build_optim_wrapper  # noqa: E402
from mmengine.structures import InstanceData  # noqa: E402

from vitadapter_fast.commands.configs import config_path  # noqa: E402
from vitadapter_fast.presets import PRESETS  # noqa: E402

pytestmark = pytest.mark.usefixtures("mmdet_scope")
register_all_modules(init_default_scope=False)

# Class of the detector, preset, parameters in millions.
RECIPES = {
    "cascade_mask_rcnn_dinov2_adapter_small_fpn_3x_coco": ("CascadeRCNN", "s", 86.1),
    "cascade_mask_rcnn_dinov2_adapter_base_fpn_3x_coco": ("CascadeRCNN", "b", 158.9),
    "atss_dinov2_adapter_small_fpn_3x_coco": ("ATSS", "s", 36.1),
}
WIDTH = 32
HEADS: dict[str, dict[str, Any]] = {
    "CascadeRCNN": {
        "rpn_head.in_channels": WIDTH,
        "rpn_head.feat_channels": WIDTH,
        "roi_head.bbox_roi_extractor.out_channels": WIDTH,
        "roi_head.mask_roi_extractor.out_channels": WIDTH,
        "roi_head.mask_head.in_channels": WIDTH,
        "roi_head.mask_head.conv_out_channels": WIDTH,
        "roi_head.mask_head.num_classes": len(CLASSES),
        "train_cfg.rpn_proposal.max_per_img": 50,
        "test_cfg.rpn.max_per_img": 50,
        **{
            f"roi_head.bbox_head.{stage}.{name}": value
            for stage in range(3)
            for name, value in (
                ("in_channels", WIDTH),
                ("conv_out_channels", WIDTH),
                ("fc_out_channels", WIDTH),
                ("num_classes", len(CLASSES)),
            )
        },
    },
    "ATSS": {
        "bbox_head.in_channels": WIDTH,
        "bbox_head.feat_channels": WIDTH,
        "bbox_head.num_classes": len(CLASSES),
    },
}


def batch() -> dict[str, Any]:
    """Two photos with a bright square each, another class each."""
    random = torch.Generator().manual_seed(0)
    images, samples = [], []
    for label in range(2):
        image = torch.randint(0, 60, (3, H, W), dtype=torch.uint8, generator=random)
        left, top, right, bottom = 16 + 40 * label, 20, 64 + 40 * label, 70
        image[:, top:bottom, left:right] += 180
        mask = torch.zeros(1, H, W, dtype=torch.uint8)
        mask[:, top:bottom, left:right] = 1
        sample = DetDataSample(metainfo={"img_shape": (H, W), "ori_shape": (H, W)})
        sample.set_metainfo({"scale_factor": (1.0, 1.0), "img_id": label})
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor([[left, top, right, bottom]], dtype=torch.float32),
            labels=torch.tensor([label]),
            masks=BitmapMasks(mask.numpy(), H, W),
        )
        images.append(image)
        samples.append(sample)
    return {"inputs": images, "data_samples": samples}


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_states_the_published_settings(name: str) -> None:
    config, (kind, size, millions) = Config.fromfile(config_path(name)), RECIPES[name]
    published = PRESETS[size].model_kwargs()
    backbone = config.model.backbone.to_dict()
    assert {key: backbone.get(key, "mlp") for key in published} == published
    assert backbone["pretrained"] == f"pretrained/dinov2_vit{size}14_pretrain.pth"
    assert config.optim_wrapper.paramwise_cfg == {
        "num_layers": PRESETS[size].depth,
        "layer_decay_rate": PRESETS[size].layer_decay,
    }
    assert (config.train_cfg.max_epochs, config.param_scheduler[1].milestones) == (36, [27, 33])
    with torch.device("meta"):
        detector = MODELS.build(config.model)
    assert type(detector).__name__ == kind
    count = sum(parameter.numel() for parameter in detector.parameters()) / 1e6
    assert round(count, 1) == millions


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_trains_and_infers(name: str) -> None:
    torch.manual_seed(0)
    config, (kind, *_) = Config.fromfile(config_path(name)), RECIPES[name]
    maps = len(config.model.neck.in_channels)
    narrow = {
        **{f"backbone.{key}": value for key, value in WINDOWED.items()},
        "backbone.pretrained": None,
        "neck.in_channels": [WINDOWED["embed_dim"]] * maps,
        "neck.out_channels": WIDTH,
        **HEADS[kind],
    }
    config.merge_from_dict({f"model.{key}": value for key, value in narrow.items()})
    config.merge_from_dict({"optim_wrapper.paramwise_cfg.num_layers": WINDOWED["depth"]})
    detector = revert_sync_batchnorm(MODELS.build(config.model))
    detector.init_weights()
    config.optim_wrapper.optimizer.lr = 2e-3
    wrapper = build_optim_wrapper(detector, config.optim_wrapper)
    detector.train()
    losses = [float(detector.train_step(batch(), wrapper)["loss"]) for _ in range(8)]
    assert losses[-1] < 0.9 * losses[0]
    data = detector.data_preprocessor(batch(), training=True)
    detector.parse_losses(detector(**data, mode="loss"))[0].backward()
    trained = {key: each for key, each in detector.named_parameters() if each.requires_grad}
    assert [key for key, each in trained.items() if each.grad is None] == []
    found = detector.eval().test_step(batch())
    assert all(each.pred_instances.bboxes.shape[1] == 4 for each in found)
    assert ("masks" in found[0].pred_instances) is (kind == "CascadeRCNN")
