# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Real torchvision detectors on the adapter."""

from collections.abc import Callable
from inspect import signature
from typing import Any

import pytest
import torch
from tiny import WINDOWED
from torch import Tensor

pytest.importorskip("torchvision")

from torchvision.models.detection import FasterRCNN, MaskRCNN  # noqa: E402

from vitadapter_fast import ViTAdapter, vit_adapter_s  # noqa: E402
from vitadapter_fast.integrations.torchvision import (  # noqa: E402
    ViTAdapterFPN,
    faster_rcnn,
    mask_rcnn,
)

# Small heads for tests; photos of 96 pixels keep their size.
SMALL: dict[str, Any] = {
    "num_classes": 3,
    "out_channels": 32,
    "min_size": 96,
    "max_size": 160,
    "box_batch_size_per_image": 32,
    "rpn_post_nms_top_n_train": 100,
    "rpn_post_nms_top_n_test": 50,
}


def tiny_adapter(**overrides: Any) -> ViTAdapter:
    torch.manual_seed(0)
    return ViTAdapter(**{**WINDOWED, "norm": "GN", **overrides})


def photos() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Two photos of different sizes, with one and two bright squares."""
    images = [torch.rand(3, 96, 128) * 0.3, torch.rand(3, 112, 96) * 0.3]
    boxes = [[[20, 30, 70, 80]], [[5, 5, 45, 50], [50, 60, 90, 105]]]
    targets = []
    for image, own in zip(images, boxes, strict=True):
        masks = torch.zeros(len(own), *image.shape[1:], dtype=torch.uint8)
        for mask, (left, top, right, bottom) in zip(masks, own, strict=True):
            mask[top:bottom, left:right] = 1
            image[:, top:bottom, left:right] += 0.6
        targets.append(
            {
                "boxes": torch.tensor(own, dtype=torch.float32),
                "labels": torch.arange(1, len(own) + 1),
                "masks": masks,
            }
        )
    return images, targets


@pytest.mark.parametrize("norm", ["none", "GN"])
def test_pyramid_is_what_torchvision_wants_of_a_backbone(norm: str) -> None:
    backbone = ViTAdapterFPN(tiny_adapter(), out_channels=24, fpn_norm=norm)
    maps = backbone(torch.rand(2, 3, 75, 96))
    assert backbone.out_channels == 24
    assert {name: tuple(level.shape) for name, level in maps.items()} == {
        "0": (2, 24, 19, 24),
        "1": (2, 24, 10, 12),
        "2": (2, 24, 5, 6),
        "3": (2, 24, 3, 3),
        "pool": (2, 24, 2, 2),
    }


@pytest.mark.parametrize("build", [faster_rcnn, mask_rcnn])
def test_detector_trains_and_infers(build: Callable[..., Any]) -> None:
    detector = build(tiny_adapter(), fpn_norm="GN", **SMALL).train()
    images, targets = photos()
    optimizer = torch.optim.AdamW(detector.parameters(), lr=1e-3)
    totals = []
    for _ in range(4):
        losses = detector(images, targets)
        total = sum(losses.values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    has_mask = build is mask_rcnn
    assert ("loss_mask" in losses) == has_mask
    assert [name for name, p in detector.named_parameters() if p.grad is None] == []
    assert totals[-1] < 0.8 * totals[0]

    detector.eval()
    with torch.no_grad():
        found = detector(images)
    for image, each in zip(images, found, strict=True):
        count = len(each["boxes"])
        assert each["boxes"].shape == (count, 4) and each["scores"].shape == (count,)
        assert not has_mask or each["masks"].shape == (count, 1, *image.shape[1:])


def test_detector_trains_with_a_frozen_vit() -> None:
    detector = faster_rcnn(tiny_adapter(frozen_vit=True), **SMALL).train()
    sum(detector(*photos()).values()).backward()
    body = detector.backbone.body
    assert body.blocks[0].mlp.fc1.weight.grad is None
    assert body.spm.fc1.weight.grad is not None


def test_detector_on_dinov3_trains_its_own_adapter() -> None:
    torch.manual_seed(0)
    detector = faster_rcnn("dinov3-t", **SMALL).train()
    sum(detector(*photos()).values()).backward()
    body = detector.backbone.body
    assert body.blocks[0].mlp.fc1.weight.grad is None and body.register_tokens.grad is None
    assert body.interactions[3].extractor.attn.value_proj.weight.grad.abs().max() > 0


def test_mask_rcnn_has_as_many_parameters_as_that_of_mmdet() -> None:
    with torch.device("meta"):
        detector = mask_rcnn("s", num_classes=81)
    # Torchvision also predicts a box and a mask of the background.
    background = 4 * (1024 + 1) + (256 + 1)
    assert sum(p.numel() for p in detector.parameters()) == 48_252_800 + background


def test_presets_are_known_by_name() -> None:
    with torch.device("meta"):
        by_name = faster_rcnn(num_classes=2).backbone.body
        preset = vit_adapter_s()
    assert by_name.state_dict().keys() == preset.state_dict().keys()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: faster_rcnn("xl"), "backbone must be one of s, b, l, g, dinov3-t.* 'xl'"),
        (lambda: mask_rcnn(tiny_adapter(), pretrained="a.pth"), "pretrained is for presets"),
        (lambda: ViTAdapterFPN(tiny_adapter(), fpn_norm="BN"), "one of none, GN, got 'BN'"),
    ],
)
def test_errors_say_what_was_wanted_and_came(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("build", [faster_rcnn, mask_rcnn])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"frozen_vit": True},
            r"'frozen_vit' \(it is the backbone's: {}\(vit_adapter_s\(frozen_vit=",
        ),
        ({"in_chans": 4}, r"'in_chans' \(it is the backbone's"),
        ({"weights": "DEFAULT"}, r"'weights' \(pretrained=FILE loads a backbone"),
        ({"weights_backbone": None}, r"'weights_backbone' \(it is pretrained=FILE here"),
        ({"trainable_backbone_layers": 3}, r"'trainable_backbone_layers' \(.*frozen_vit=True"),
        ({"progress": False}, r"'progress' \(nothing is downloaded"),
        ({"min_sise": 64}, r"'min_sise' \(did you mean 'min_size'\?\)"),
    ],
)
def test_keyword_that_torchvision_would_swallow_is_refused(
    build: Callable[..., Any], wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(TypeError, match=message.format(build.__name__)):
        build(tiny_adapter(), **wrong)


@pytest.mark.parametrize(
    ("build", "kind"), [(faster_rcnn, FasterRCNN), (mask_rcnn, MaskRCNN)], ids=["faster", "mask"]
)
def test_every_keyword_of_torchvision_is_taken(build: Callable[..., Any], kind: type) -> None:
    settings = {
        name: parameter.default
        for name, parameter in signature(kind).parameters.items()
        if parameter.default is not parameter.empty and name != "num_classes"
    }
    of_transform = {"size_divisible": 64, "fixed_size": None, "_skip_resize": True}
    detector = build(tiny_adapter(), num_classes=3, **of_transform, **settings)
    assert detector.transform.size_divisible == 64 and detector.transform._skip_resize
