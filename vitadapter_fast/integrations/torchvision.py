# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A ViT-Adapter in; torchvision's Faster R-CNN, Mask R-CNN, RetinaNet or FCOS on it out."""

import os
from collections import OrderedDict
from functools import partial
from inspect import Parameter, signature
from typing import Any

from torch import Tensor, nn

from ..builders import MODELS, vit_adapter
from ..model import ViTAdapter
from ..model.norm import make_norm
from ._common import MODEL_KEYWORDS, check_keywords, fix_unused, missing

try:
    from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
    from torchvision.models.detection.transform import GeneralizedRCNNTransform
    from torchvision.ops import FeaturePyramidNetwork
    from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7
except ModuleNotFoundError as error:
    raise missing(__name__, error, "pip install torchvision") from error

STRIDES = ViTAdapter.strides
FPN_NORMS = ("none", "GN")

# What torchvision's own builders, as fasterrcnn_resnet50_fpn, take and its classes do not.
_OF_BUILDERS = {
    "weights": "pretrained=FILE loads a backbone; load_state_dict a whole detector",
    "weights_backbone": "it is pretrained=FILE here",
    "trainable_backbone_layers": "build the backbone with frozen_vit=True to fix the ViT",
    "progress": "nothing is downloaded",
}


class ViTAdapterFPN(nn.Module):
    """The adapter and a feature pyramid network on it: what torchvision calls a backbone.

    Attributes:
        out_channels: Channels of every map.

    Source: Lin et al. 2017, arXiv:1612.03144.
    """

    def __init__(
        self,
        backbone: ViTAdapter,
        *,
        out_channels: int = 256,
        fpn_norm: str = "none",
        first_stride: int = 4,
    ) -> None:
        """Put a pyramid network on ``backbone``.

        Args:
            backbone: The adapter. With ``first_stride=8`` its layers that serve only the map of
                stride 4 are fixed.
            out_channels: Channels of every map.
            fpn_norm: "none": convolutions with a bias, as in torchvision; or "GN": a group norm
                after each, which trains from scratch.
            first_stride: 4: strides 4 to 64, the last map a subsample of the one before, as Faster
                R-CNN takes them; 8: strides 8 to 128, the last two by convolutions, as RetinaNet
                and FCOS do.

        Raises:
            ValueError: ``fpn_norm`` or ``first_stride`` is none of these.
        """
        super().__init__()
        if fpn_norm not in FPN_NORMS:
            raise ValueError(
                f"ViTAdapterFPN: fpn_norm must be one of {', '.join(FPN_NORMS)}, got {fpn_norm!r}"
            )
        if first_stride not in (4, 8):
            raise ValueError(f"ViTAdapterFPN: first_stride must be 4 or 8, got {first_stride!r}")
        self.out_channels = out_channels
        self.body = backbone
        self.first_map = STRIDES.index(first_stride)
        last = (
            LastLevelMaxPool() if first_stride == 4 else LastLevelP6P7(out_channels, out_channels)
        )
        self.fpn = FeaturePyramidNetwork(
            [backbone.embed_dim] * len(STRIDES[self.first_map :]),
            out_channels,
            extra_blocks=last,
            norm_layer=None if fpn_norm == "none" else partial(make_norm, fpn_norm),
        )
        fix_unused(backbone, [stride >= first_stride for stride in STRIDES])

    def forward(self, image: Tensor) -> OrderedDict[str, Tensor]:
        """Return maps [B, out_channels, H / s, W / s], finest first.

        Their names are torchvision's: "0", "1", "2", "3" and "pool" for s = 4, 8, 16, 32, 64, or
        "0", "1", "2", "p6" and "p7" for s = 8, 16, 32, 64, 128.

        Args:
            image: [B, I, H, W], as for ``ViTAdapter``.
        """
        maps = self.body(image)[self.first_map :]
        levels = OrderedDict((str(index), level) for index, level in enumerate(maps))
        pyramid: OrderedDict[str, Tensor] = self.fpn(levels)
        return pyramid


def faster_rcnn(
    backbone: str | ViTAdapter = "s",
    *,
    num_classes: int | None = 91,
    pretrained: str | os.PathLike[str] | None = None,
    out_channels: int = 256,
    fpn_norm: str = "none",
    **settings: Any,
) -> FasterRCNN:
    """Build torchvision's Faster R-CNN on an adapter.

    Args:
        backbone: A preset, "s", "b", "l" or "g", or any adapter.
        num_classes: Classes with the background, which is class 0; COCO's ids go up to 90. None
            where ``settings`` has a ``box_predictor``.
        pretrained: Checkpoint for a preset, as for ``ViTAdapter``.
        out_channels: Channels of the pyramid network.
        fpn_norm: "none" or "GN", as for ``ViTAdapterFPN``.
        **settings: Keywords of torchvision's ``FasterRCNN`` and ``GeneralizedRCNNTransform``. Its
            images have values in [0, 1], and its mean and deviation are those that DINOv2 was
            trained with.

    Raises:
        TypeError: A keyword is unknown; those of ``ViTAdapter`` go to the adapter.
        ValueError: The preset is unknown, or ``pretrained`` comes with an adapter.
        CheckpointError: ``pretrained`` does not fit.
    """
    _check_settings("faster_rcnn", FasterRCNN, settings)
    body = _pyramid("faster_rcnn", backbone, pretrained, out_channels, fpn_norm)
    return FasterRCNN(body, num_classes, **settings)


def mask_rcnn(
    backbone: str | ViTAdapter = "s",
    *,
    num_classes: int | None = 91,
    pretrained: str | os.PathLike[str] | None = None,
    out_channels: int = 256,
    fpn_norm: str = "none",
    **settings: Any,
) -> MaskRCNN:
    """Build torchvision's Mask R-CNN on an adapter; arguments and errors as for ``faster_rcnn``."""
    _check_settings("mask_rcnn", MaskRCNN, settings)
    body = _pyramid("mask_rcnn", backbone, pretrained, out_channels, fpn_norm)
    return MaskRCNN(body, num_classes, **settings)


def retinanet(
    backbone: str | ViTAdapter = "s",
    *,
    num_classes: int = 91,
    pretrained: str | os.PathLike[str] | None = None,
    out_channels: int = 256,
    fpn_norm: str = "none",
    **settings: Any,
) -> RetinaNet:
    """Build torchvision's RetinaNet on the maps of stride 8 to 128.

    Arguments and errors are as for ``faster_rcnn``. The layers of an adapter that serve only its
    map of stride 4 are fixed.
    """
    _check_settings("retinanet", RetinaNet, settings)
    body = _pyramid("retinanet", backbone, pretrained, out_channels, fpn_norm, first_stride=8)
    return RetinaNet(body, num_classes, **settings)


def fcos(
    backbone: str | ViTAdapter = "s",
    *,
    num_classes: int = 91,
    pretrained: str | os.PathLike[str] | None = None,
    out_channels: int = 256,
    fpn_norm: str = "none",
    **settings: Any,
) -> FCOS:
    """Build torchvision's FCOS on the maps of stride 8 to 128; all else as for ``retinanet``.

    Its head has group norms of 32 groups: ``out_channels`` is a multiple of 32.
    """
    _check_settings("fcos", FCOS, settings)
    body = _pyramid("fcos", backbone, pretrained, out_channels, fpn_norm, first_stride=8)
    return FCOS(body, num_classes, **settings)


def _check_settings(who: str, detector: type[nn.Module], settings: dict[str, Any]) -> None:
    """Raise TypeError for what torchvision's classes would pass over: they take any keyword."""
    named = {
        name
        for kind in (detector, GeneralizedRCNNTransform)
        for name, parameter in signature(kind).parameters.items()
        if parameter.kind is not Parameter.VAR_KEYWORD
    }
    # One that its transform reads is in no signature.
    own = {*signature(faster_rcnn).parameters, "_skip_resize"} - {"settings"}
    of_backbone = {
        name: f"it is the backbone's: {who}(vit_adapter_s({name}=...))" for name in MODEL_KEYWORDS
    }
    check_keywords(who, settings, named | own, {**of_backbone, **_OF_BUILDERS})


def _pyramid(
    who: str,
    backbone: str | ViTAdapter,
    pretrained: str | os.PathLike[str] | None,
    out_channels: int,
    fpn_norm: str,
    first_stride: int = 4,
) -> ViTAdapterFPN:
    if isinstance(backbone, str):
        if backbone not in MODELS:
            raise ValueError(
                f"{who}: backbone must be one of {', '.join(MODELS)} or a ViTAdapter, got "
                f"{backbone!r}"
            )
        backbone = vit_adapter(backbone, pretrained)
    elif pretrained is not None:
        raise ValueError(
            f"{who}: pretrained is for presets, got it with an adapter; give it to ViTAdapter"
        )
    return ViTAdapterFPN(
        backbone, out_channels=out_channels, fpn_norm=fpn_norm, first_stride=first_stride
    )
