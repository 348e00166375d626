# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Name of a published model in, the parts of a detectron2 LazyConfig that trains it out."""

from typing import Any, NamedTuple

import torch

from ..builders import preset_of
from ..optim import layer_decay_groups
from ._common import missing
from .detectron2 import OUT_FEATURES, PIXEL_MEAN, PIXEL_STD, ViTAdapter, preset_keywords

try:
    import detectron2.data.transforms as T
    from detectron2.config import LazyCall as L
    from detectron2.model_zoo import get_config
except ModuleNotFoundError as error:
    # The model zoo imports pkg_resources, which newer setuptools do not have.
    raise missing(__name__, error, "install detectron2 and 'setuptools<81'") from error

_MAX_SIDE = 1333
_BATCHES_3X = 270_000


class Recipe(NamedTuple):
    """What detectron2's ``tools/lazyconfig_train_net.py`` reads from a config.

    Attributes:
        dataloader: Training and test data, and the evaluator.
        lr_multiplier: Schedule of the learning rate.
        model: The detector.
        optimizer: Optimizer with its parameter groups.
        train: Length, checkpoints, device.
    """

    dataloader: Any
    lr_multiplier: Any
    model: Any
    optimizer: Any
    train: Any


def mask_rcnn_3x(size: str, pretrained: str | None = None, *, injectors: bool = False) -> Recipe:
    """Return Mask R-CNN with FPN on a published model, COCO, 3x schedule, scales from 480 to 800.

    Args:
        size: "s", "b", "l" or "g", on DINOv2; or "dinov3-s" and so on.
        pretrained: Checkpoint in any format that ``load_checkpoint`` knows, or None; read when the
            model is built, so set it to None to test a trained detector without it.
        injectors: Which adapter on DINOv3, see ``vit_adapter_dinov3``: its own, on a frozen ViT,
            or ViT-Adapter's, whose ViT trains.

    Raises:
        ValueError: ``size`` is none of these.

    Source: ViT-Adapter's DINOv2 configs, https://github.com/czczup/ViT-Adapter.
    """
    keywords = preset_keywords(size, injectors=injectors)
    model = get_config("common/models/mask_rcnn_fpn.py").model
    model.backbone.bottom_up = L(ViTAdapter)(
        **keywords, pretrained=pretrained, out_features=list(OUT_FEATURES)
    )
    model.input_format = "RGB"
    model.pixel_mean = list(PIXEL_MEAN)
    model.pixel_std = list(PIXEL_STD)

    dataloader = get_config("common/data/coco.py").dataloader
    mapper = dataloader.train.mapper
    mapper.image_format = "RGB"
    mapper.augmentations = _augmentations()
    # Crops cut masks; boxes shrink with them.
    mapper.recompute_boxes = True

    optimizer = L(torch.optim.AdamW)(
        # The trainer sets params.model.
        params=L(layer_decay_groups)(
            lr="${..lr}",
            weight_decay="${..weight_decay}",
            layer_decay=1.0 if keywords.get("frozen_vit") else preset_of(size).layer_decay,
        ),
        lr=1e-4,
        betas=(0.9, 0.999),
        weight_decay=0.05,
    )
    train = get_config("common/train.py").train
    train.max_iter = _BATCHES_3X
    lr_multiplier = get_config("common/coco_schedule.py").lr_multiplier_3x
    return Recipe(dataloader, lr_multiplier, model, optimizer, train)


def _augmentations() -> list[Any]:
    def resize(*short_sides: int) -> Any:
        return L(T.ResizeShortestEdge)(
            short_edge_length=short_sides, sample_style="choice", max_size=_MAX_SIDE
        )

    crop = L(T.RandomCrop)(crop_type="absolute_range", crop_size=(384, 600))
    cut = L(T.AugmentationList)(augs=[resize(400, 500, 600), crop])
    return [
        L(T.RandomFlip)(horizontal=True),
        L(T.RandomApply)(tfm_or_aug=cut, prob=0.5),
        resize(*range(480, 801, 32)),
        L(T.RandomCrop)(crop_type="absolute_range", crop_size=(1024, 1024)),
    ]
