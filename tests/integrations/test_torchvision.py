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

torchvision = pytest.importorskip("torchvision")

from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet  # noqa: E402
from torchvision.models.detection.image_list import ImageList  # noqa: E402

from vitadapter_fast import ViTAdapter, vit_adapter_s  # noqa: E402
from vitadapter_fast.integrations.torchvision import (  # noqa: E402
    ViTAdapterFPN,
    faster_rcnn,
    fcos,
    mask_rcnn,
    retinanet,
)

KINDS = {faster_rcnn: FasterRCNN, mask_rcnn: MaskRCNN, retinanet: RetinaNet, fcos: FCOS}
ONE_STAGE = (retinanet, fcos)
# Small heads for tests; photos of 96 pixels keep their size.
SMALL: dict[str, Any] = {"num_classes": 3, "out_channels": 32, "min_size": 96, "max_size": 160}
SMALL_RCNN: dict[str, Any] = {
    **SMALL,
    "box_batch_size_per_image": 32,
    "rpn_post_nms_top_n_train": 100,
    "rpn_post_nms_top_n_test": 50,
}
every_detector = pytest.mark.parametrize("build", KINDS, ids=[each.__name__ for each in KINDS])


def tiny_adapter(**overrides: Any) -> ViTAdapter:
    torch.manual_seed(0)
    return ViTAdapter(**{**WINDOWED, "norm": "GN", **overrides})


def small(build: Callable[..., Any], **overrides: Any) -> Any:
    settings = SMALL if build in ONE_STAGE else SMALL_RCNN
    return build(tiny_adapter(), **{**settings, **overrides})


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


def test_pyramid_of_a_one_stage_detector_is_that_of_torchvisions_own() -> None:
    with torch.device("meta"):
        own = torchvision.models.detection.fcos_resnet50_fpn(weights_backbone=None).backbone
        image = torch.empty(2, 3, 160, 224)
        wanted = {name: tuple(level.shape[2:]) for name, level in own(image).items()}
    backbone = ViTAdapterFPN(tiny_adapter(), out_channels=24, first_stride=8)
    maps = backbone(torch.rand(2, 3, 160, 224))
    assert {name: tuple(level.shape[2:]) for name, level in maps.items()} == wanted
    assert {level.shape[:2] for level in maps.values()} == {(2, 24)}
    wanted_state = {name for name in own.state_dict() if name.startswith("fpn.")}
    assert {name for name in backbone.state_dict() if name.startswith("fpn.")} == wanted_state


@every_detector
def test_detector_trains_and_infers(build: Callable[..., Any]) -> None:
    detector = small(build, fpn_norm="GN").train()
    images, targets = photos()
    trained = {name: each for name, each in detector.named_parameters() if each.requires_grad}
    fixed = {"up", "norm1", "spm"} if build in ONE_STAGE else set()
    names = {name for name, _ in detector.named_parameters()} - trained.keys()
    assert {name.removeprefix("backbone.body.").split(".")[0] for name in names} == fixed
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-3)
    totals = []
    for _ in range(12 if build is retinanet else 4):  # its classes start at a probability of 1 %
        losses = detector(images, targets)
        total = sum(losses.values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    has_mask = build is mask_rcnn
    assert ("loss_mask" in losses) == has_mask
    # DistributedDataParallel would wait for the others.
    assert [name for name, each in trained.items() if each.grad is None] == []
    assert totals[-1] < 0.8 * totals[0]

    detector.eval()
    with torch.no_grad():
        found = detector(images)
    for image, each in zip(images, found, strict=True):
        count = len(each["boxes"])
        assert each["boxes"].shape == (count, 4) and each["scores"].shape == (count,)
        assert not has_mask or each["masks"].shape == (count, 1, *image.shape[1:])


@every_detector
def test_detector_comes_back_from_its_weights(build: Callable[..., Any]) -> None:
    detector = small(build, score_thresh=0.0) if build in ONE_STAGE else small(build)
    images, targets = photos()
    detector.train()(images, targets)
    other = small(build)
    with torch.no_grad():
        for each in other.parameters():
            each.zero_()
    other.load_state_dict(detector.state_dict())
    if build in ONE_STAGE:
        other.score_thresh = 0.0
    with torch.no_grad():
        found, again = (each.eval()(images) for each in (detector, other))
    assert all(len(each["boxes"]) for each in found)
    for one, two in zip(found, again, strict=True):
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("build", ONE_STAGE, ids=["retinanet", "fcos"])
def test_anchors_have_the_size_of_their_stride(build: Callable[..., Any]) -> None:
    """Of large images: torchvision rounds strides of small ones."""
    detector = small(build)
    images = ImageList(torch.empty(1, 3, 256, 256), [(256, 256)])
    strides = (8, 16, 32, 64, 128)
    maps = [torch.empty(1, 1, 256 // stride, 256 // stride) for stride in strides]
    (anchors,) = detector.anchor_generator(images, maps)
    counts = [
        level[0, 0].numel() * detector.anchor_generator.num_anchors_per_location()[0]
        for level in maps
    ]
    for stride, level in zip(strides, anchors.split(counts), strict=True):
        sizes = ((level[:, 2:] - level[:, :2]).prod(1) ** 0.5).unique()
        if build is fcos:
            assert sizes.tolist() == [stride]
        else:
            assert 0.9 < sizes.min() / (4 * stride) < sizes.max() / (4 * stride) < 1.7


def test_detector_trains_with_a_frozen_vit() -> None:
    detector = faster_rcnn(tiny_adapter(frozen_vit=True), **SMALL_RCNN).train()
    sum(detector(*photos()).values()).backward()
    body = detector.backbone.body
    assert body.blocks[0].mlp.fc1.weight.grad is None
    assert body.spm.fc1.weight.grad is not None


def test_detector_on_dinov3_trains_its_own_adapter() -> None:
    torch.manual_seed(0)
    detector = faster_rcnn("dinov3-t", **SMALL_RCNN).train()
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
        (lambda: fcos("xl"), "fcos: backbone must be one of s, b, l, g, dinov3-t.* 'xl'"),
        (lambda: ViTAdapterFPN(tiny_adapter(), fpn_norm="BN"), "one of none, GN, got 'BN'"),
        (lambda: ViTAdapterFPN(tiny_adapter(), first_stride=16), "must be 4 or 8, got 16"),
    ],
)
def test_errors_say_what_was_wanted_and_came(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@every_detector
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


@every_detector
def test_every_keyword_of_torchvision_is_taken(build: Callable[..., Any]) -> None:
    settings = {
        name: parameter.default
        for name, parameter in signature(KINDS[build]).parameters.items()
        if parameter.default is not parameter.empty and name != "num_classes"
    }
    of_transform = {"size_divisible": 64, "fixed_size": None, "_skip_resize": True}
    detector = build(tiny_adapter(), num_classes=3, **of_transform, **settings)
    assert detector.transform.size_divisible == 64 and detector.transform._skip_resize
