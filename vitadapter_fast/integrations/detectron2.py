# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A detectron2 config in, a backbone out, alone or under a feature pyramid network."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .. import model as models
from ..builders import MODELS, preset_of
from ..images import MEAN, STD
from ..optim import layer_of
from ..presets import DINOv3Preset
from ._common import MODEL_KEYWORDS, check_keywords, fix_unused, missing

try:
    from detectron2.config import CfgNode
    from detectron2.modeling import BACKBONE_REGISTRY
    from detectron2.modeling.backbone import FPN, Backbone
    from detectron2.modeling.backbone.fpn import LastLevelMaxPool
except ModuleNotFoundError as error:
    raise missing(
        __name__,
        error,
        "pip install 'git+https://github.com/facebookresearch/detectron2'",
    ) from error

# What configs for ResNets call the maps of stride 4, 8, 16, 32.
OUT_FEATURES = ("res2", "res3", "res4", "res5")
# Of values from 0 to 255.
PIXEL_MEAN, PIXEL_STD = ([round(255 * each, 3) for each in part] for part in (MEAN, STD))


class ViTAdapter(models.ViTAdapter, Backbone):
    """The backbone with the conventions of detectron2; its parameter names are the original's."""

    def __init__(self, *, out_features: Sequence[str] = OUT_FEATURES, **kwargs: Any) -> None:
        """Build the backbone.

        Args:
            out_features: Which maps to return: "res2", "res3", "res4", "res5" for strides 4, 8,
                16, 32. Layers that serve only other maps take no gradients.
            **kwargs: As for ``vitadapter_fast.ViTAdapter``.

        Raises:
            TypeError: A keyword is unknown.
            ValueError: A setting is out of range or disagrees with another.
            CheckpointError: ``pretrained`` does not fit.
        """
        check_keywords("ViTAdapter", kwargs, {*MODEL_KEYWORDS, "out_features"})
        features = list(out_features)
        if not features or features != [name for name in OUT_FEATURES if name in features]:
            raise ValueError(
                f"ViTAdapter: out_features must be some of {', '.join(OUT_FEATURES)}, in this "
                f"order, got {features}"
            )
        super().__init__(**kwargs)
        self._out_features = features
        self._out_feature_strides = dict(zip(OUT_FEATURES, self.strides, strict=True))
        self._out_feature_channels = dict.fromkeys(OUT_FEATURES, self.embed_dim)
        fix_unused(self, [name in features for name in OUT_FEATURES])

    # Meta-architectures and necks of detectron2 take dicts.
    def forward(self, image: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        """Return the maps of ``out_features``, [B, C, ceil(H / s), ceil(W / s)] each.

        Args:
            image: [B, I, H, W], normalized by the meta-architecture; H and W at least 32.
        """
        maps = dict(zip(OUT_FEATURES, super().forward(image), strict=True))
        return {name: maps[name] for name in self._out_features}

    @property
    def size_divisibility(self) -> int:
        """Multiple to which batches are padded, so that the maps of a pyramid fit one another."""
        return self.strides[-1]

    @property
    def padding_constraints(self) -> dict[str, int]:
        """The same, as detectron2 asks for it since 0.6."""
        return {"size_divisibility": self.size_divisibility, "square_size": 0}


def add_vit_adapter_config(cfg: Any) -> None:
    """Add the keys of the backbone to a config, and set the input to what DINOv2 was trained with.

    ``MODEL.VIT_ADAPTER`` has ``SIZE`` ("s", "b", "l", "g"), ``PRETRAINED`` (a checkpoint in any
    format that ``load_checkpoint`` knows, or ""), ``OUT_FEATURES``, and ``OVERRIDES``: any keyword
    of ``ViTAdapter``, which replaces the published setting. ``INPUT.FORMAT`` becomes "RGB",
    ``MODEL.PIXEL_MEAN`` and ``PIXEL_STD`` ImageNet's.

    Args:
        cfg: From ``detectron2.config.get_cfg()``; changed in place.
    """
    node = CfgNode()
    node.SIZE = "s"
    node.PRETRAINED = ""
    node.OUT_FEATURES = list(OUT_FEATURES)
    node.OVERRIDES = CfgNode(new_allowed=True)
    cfg.MODEL.VIT_ADAPTER = node
    cfg.MODEL.FPN.IN_FEATURES = list(OUT_FEATURES)
    cfg.INPUT.FORMAT = "RGB"
    cfg.MODEL.PIXEL_MEAN = list(PIXEL_MEAN)
    cfg.MODEL.PIXEL_STD = list(PIXEL_STD)


@BACKBONE_REGISTRY.register()
def build_vit_adapter_backbone(cfg: Any, input_shape: Any) -> ViTAdapter:
    """Build the backbone of a config.

    Args:
        cfg: A ``CfgNode`` with the keys of ``add_vit_adapter_config``.
        input_shape: The image's ``ShapeSpec``, of which the channels count.

    Raises:
        ValueError: The keys are missing, the size is unknown, or a setting is wrong.
    """
    node = cfg.MODEL.get("VIT_ADAPTER")
    if node is None:
        raise ValueError(
            "build_vit_adapter_backbone: wanted MODEL.VIT_ADAPTER in the config, got none; call "
            "vitadapter_fast.integrations.detectron2.add_vit_adapter_config(cfg) before merging"
        )
    keywords = {
        **preset_keywords(node.SIZE),
        "in_chans": input_shape.channels,
        "pretrained": node.PRETRAINED or None,
        "out_features": node.OUT_FEATURES,
    }
    return ViTAdapter(**{**keywords, **node.OVERRIDES})


@BACKBONE_REGISTRY.register()
def build_vit_adapter_fpn_backbone(cfg: Any, input_shape: Any) -> Any:
    """Build the backbone of a config under a feature pyramid network, as ``MODEL.FPN`` says."""
    fpn = cfg.MODEL.FPN
    return FPN(
        bottom_up=build_vit_adapter_backbone(cfg, input_shape),
        in_features=fpn.IN_FEATURES,
        out_channels=fpn.OUT_CHANNELS,
        norm=fpn.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=fpn.FUSE_TYPE,
    )


def get_vit_adapter_lr_decay_rate(
    name: str, lr_decay_rate: float = 1.0, num_layers: int = 12
) -> float:
    """Return the factor of a parameter's learning rate, for ``get_default_optimizer_params``.

    Args:
        name: As in the detector's ``named_parameters()``.
        lr_decay_rate: Factor from one layer to the one before it.
        num_layers: ViT blocks.
    """
    if not name.startswith("backbone."):
        return 1.0
    local = name.removeprefix("backbone.").removeprefix("bottom_up.")
    return float(lr_decay_rate ** (num_layers + 1 - layer_of(local, num_layers)))


def preset_keywords(size: str, *, injectors: bool = False) -> dict[str, Any]:
    """Return the published keywords of ``ViTAdapter`` for a name that ``vit_adapter`` takes.

    Args:
        size: The name.
        injectors: Which adapter on DINOv3, see ``vit_adapter_dinov3``; DINOv2's always has them.

    Raises:
        ValueError: There is no such name.
    """
    if size not in MODELS:
        raise ValueError(
            f"ViTAdapter: size must be one of {', '.join(MODELS)}, got {size!r}; set "
            "MODEL.VIT_ADAPTER.SIZE"
        )
    preset = preset_of(size)
    if isinstance(preset, DINOv3Preset):
        return preset.model_kwargs(injectors=injectors)
    return preset.model_kwargs()
