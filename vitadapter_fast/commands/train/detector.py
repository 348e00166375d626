# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Settings in; torchvision's Faster R-CNN or Mask R-CNN on the adapter out."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes

from ...builders import vit_adapter
from ...errors import CommandError
from ...files import first_sentence
from ...integrations.torchvision import faster_rcnn, mask_rcnn
from ...model import ViTAdapter
from .settings import TINY, Settings

# What a run writes for ``detect``.
RESULT = "detector.safetensors"

_TINY: dict[str, Any] = {
    "pretrain_size": 320,
    "img_size": 320,
    "embed_dim": 128,
    "depth": 4,
    "num_heads": 4,
    "conv_inplane": 32,
    "deform_num_heads": 4,
    "deform_ratio": 0.5,
    "interaction_indexes": [[0, 0], [1, 1], [2, 2], [3, 3]],
    "window_attn": [True, False, True, False],
    "window_size": 8,
}
_TINY_FPN, _TINY_HEAD = 64, 256
# In pixels, one for each of the strides 4 to 64: of blood cells in photos of 320 x 240.
_TINY_ANCHORS = ((20,), (52,), (76,), (104,), (136,))


def build_detector(settings: Settings, num_classes: int, weights: str | None = None) -> FasterRCNN:
    """Build a detector, in training mode.

    Args:
        settings: Its model, size and kind; the rest is not looked at.
        num_classes: Without the background.
        weights: Of the ViT or the adapter, as for ``load_checkpoint``; None for random ones.

    Raises:
        CheckpointError: The weights cannot be read or do not fit.
        ValueError: A setting disagrees with the model.
    """
    overrides: dict[str, Any] = {"vit_features": settings.vit_features, "norm": settings.norm}
    if settings.has_frozen_vit is not None:
        overrides["frozen_vit"] = settings.has_frozen_vit
    heads: dict[str, Any] = {"num_classes": num_classes + 1}
    if settings.model == TINY:
        adapter = ViTAdapter(**_TINY, **overrides, pretrained=weights)
        heads = _tiny_heads(num_classes + 1, settings.has_masks)
    else:
        adapter = vit_adapter(settings.model, weights, **overrides)
    if adapter.has_frozen_vit and settings.weights is None:
        raise CommandError(
            f"{settings.model}: its ViT is frozen, and without --weights it is random; give it "
            "weights, or train it with --no-frozen-vit"
        )
    detector = (mask_rcnn if settings.has_masks else faster_rcnn)(adapter, **heads)
    resize = detector.transform
    detector.transform = _FitInto(
        settings.size, settings.jitter, resize.image_mean, resize.image_std
    )
    # Boxes stay in float32 under autocast: in bfloat16, an edge at 600 is off by up to 2.
    detector.backbone.register_forward_hook(_as_float32)
    for part in (detector.rpn, detector.roi_heads):
        part.box_coder = _ExactBoxCoder(part.box_coder.weights, part.box_coder.bbox_xform_clip)
    return detector


def load_detector(run: Path) -> tuple[FasterRCNN, dict[int, str]]:
    """Build the detector that a run has written, in eval mode; and its classes, as of ``Split``.

    Raises:
        CommandError: There is none, or it cannot be read.
    """
    file = run / RESULT
    if not os.path.isfile(file):
        raise CommandError(
            f"{run}: wanted the folder of a run, which has {RESULT} when its first epoch is done"
        )
    try:
        with safe_open(file, "pt") as opened:
            about = json.loads(opened.metadata()["run"])
            state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        classes = {int(id): str(name) for id, name in about["classes"]}
        detector = build_detector(Settings.from_dict(about["settings"]), len(classes))
        detector.load_state_dict(state)
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise CommandError(
            f"{file}: no detector of this version: {first_sentence(error)}"
        ) from error
    return detector.eval(), classes


def _tiny_heads(num_classes: int, has_masks: bool) -> dict[str, Any]:
    heads = {
        "num_classes": None,
        "out_channels": _TINY_FPN,
        "fpn_norm": "GN",
        "rpn_anchor_generator": AnchorGenerator(_TINY_ANCHORS, ((1.0,),) * len(_TINY_ANCHORS)),
        "rpn_pre_nms_top_n_train": 400,
        "rpn_pre_nms_top_n_test": 400,
        "rpn_post_nms_top_n_train": 200,
        "rpn_post_nms_top_n_test": 200,
        "box_batch_size_per_image": 96,
        "box_head": TwoMLPHead(_TINY_FPN * 7 * 7, _TINY_HEAD),
        "box_predictor": FastRCNNPredictor(_TINY_HEAD, num_classes),
    }
    if has_masks:
        heads["mask_head"] = MaskRCNNHeads(_TINY_FPN, (_TINY_FPN,) * 2, 1)
        heads["mask_predictor"] = MaskRCNNPredictor(_TINY_FPN, _TINY_FPN, num_classes)
    return heads


class _FitInto(GeneralizedRCNNTransform):  # type: ignore[misc]
    """Resizes photos to fit into a size, smoothed; torchvision's own skips pixels."""

    def __init__(
        self, hw: tuple[int, int], jitter: float, mean: list[float], std: list[float]
    ) -> None:
        super().__init__(min(hw), max(hw), mean, std)
        self.hw = hw
        self.jitter = jitter

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        H, W = image.shape[-2:]
        scale = min(self.hw[0] / H, self.hw[1] / W)
        if self.training:
            scale *= 1 + self.jitter * (2 * torch.rand((), dtype=torch.float32).item() - 1)
        hw = [max(1, round(side * scale)) for side in (H, W)]
        image = functional.interpolate(image[None], hw, mode="bilinear", antialias=True)[0]
        if target is not None:
            target["boxes"] = resize_boxes(target["boxes"], [H, W], hw)
            if "masks" in target:
                masks = functional.interpolate(target["masks"][:, None].float(), hw)
                target["masks"] = masks[:, 0].byte()
        return image, target


def _as_float32(
    backbone: nn.Module, args: tuple[Tensor], maps: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return maps in the type that anchors and proposals shall have, which is taken from them."""
    return {name: each.float() for name, each in maps.items()}


class _ExactBoxCoder(BoxCoder):  # type: ignore[misc]
    """Decodes boxes in float32, whatever the type of what a head says."""

    def decode(self, rel_codes: Tensor, boxes: list[Tensor]) -> Tensor:
        decoded: Tensor = super().decode(rel_codes.float(), boxes)
        return decoded
