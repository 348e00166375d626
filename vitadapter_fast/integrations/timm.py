# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""timm's models: importing this module adds all published adapters to its registry.

After it, ``timm.create_model("vit_adapter_s_dinov2", features_only=True)`` knows them, and
``timm.list_models("vit_adapter_*")`` lists them.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys

from ..builders import MODELS, model_kwargs
from ..images import MEAN, MIN_SIZE, STD
from ..optim import TOKENS, layer_of
from ..weights import load_checkpoint
from ..weights.download import official_model
from ..weights.hub import repository
from ._common import (
    MODEL_KEYWORDS,
    ForeignWeights,
    check_keywords,
    family_of,
    fix_unused,
    missing,
    published_weights,
    recompute_activations,
    registered_name,
)

try:
    from timm.models import (
        FeatureInfo,
        build_model_with_cfg,
        generate_default_cfgs,
        get_pretrained_cfg,
        register_model,
        resolve_pretrained_cfg,
    )
    from timm.models._features import FeatureGetterNet, feature_take_indices
except ModuleNotFoundError as error:
    raise missing(__name__, error, "pip install 'timm>=1.0.31'") from error

__all__ = ["FeatureMaps", "ViTAdapter"]

Path = str | os.PathLike[str]

_NORMS = ("norm1", "norm2", "norm3", "norm4")
_ALL = (0, 1, 2, 3)
_FORMATS = ("NCHW", "NHWC")
_PAPERS = {"dinov2": "arXiv:2304.07193", "dinov3": "arXiv:2508.10104"}
# Of FeatureMaps, which holds the model under it.
_PREFIX = "model."
# Where timm's own configs say that weights are.
_SOURCES = ("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source")
_KEYWORDS = MODEL_KEYWORDS | {
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "pretrained_model_args",
    "cache_dir",
    "features_only",
    "out_indices",
    "num_classes",
}
_ELSEWHERE = {
    "dynamic_img_size": "the model takes images of any size",
    "feature_cls": "features_only=True gives the maps that the model computes",
    "global_pool": "there is no head that pools",
    "output_stride": "the strides are 4, 8, 16 and 32",
}


class ViTAdapter(ForeignWeights):
    """The backbone with the face of timm's models; its parameter names are the original's.

    It has no classifier: ``forward`` returns all four maps, as that of
    ``vitadapter_fast.ViTAdapter``.

    Attributes:
        feature_info: Channels, stride and last layer of each map.
        num_features: Channels of every map.
        num_classes: 0.
    """

    def __init__(self, **settings: Any) -> None:
        """Build the model.

        Args:
            **settings: As for ``vitadapter_fast.ViTAdapter``.

        Raises:
            TypeError: A keyword is unknown.
            ValueError: A setting is out of range or disagrees with another.
            CheckpointError: ``pretrained`` does not fit.
        """
        check_keywords("ViTAdapter", settings, MODEL_KEYWORDS)
        super().__init__(**settings)
        self.num_classes = 0
        self.num_features = self.head_hidden_size = self.embed_dim
        # What timm calls so are tokens that come out of a model.
        self.num_prefix_tokens = 0
        self.feature_info = FeatureInfo(
            [
                {"num_chs": self.embed_dim, "reduction": stride, "module": norm}
                for stride, norm in zip(self.strides, _NORMS, strict=True)
            ],
            out_indices=_ALL,
        )

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return chosen maps.

        Args:
            x: Images [B, I, H, W], as for ``vitadapter_fast.ViTAdapter``.
            indices: Of the maps of stride 4, 8, 16, 32: a number of the last ones, or their
                indexes, -4 to 3, in the order wanted; None for all.
            norm: Without effect: each map is behind a norm of its own.
            stop_early: Without effect: every map needs the whole model.
            output_fmt: "NCHW" or "NHWC".
            intermediates_only: Whether the maps come alone.

        Returns:
            The maps, [B, C, ceil(H / s), ceil(W / s)] or with channels last; or what
            ``forward_features`` returns, and the maps.

        Raises:
            AssertionError: There is no such map; timm's own.
            ValueError: ``output_fmt`` is neither; the image has another shape or type.
        """
        if output_fmt not in _FORMATS:
            raise ValueError(
                f"forward_intermediates: output_fmt must be one of {', '.join(_FORMATS)}, got "
                f"{output_fmt!r}"
            )
        taken, _ = feature_take_indices(len(_ALL), indices)
        maps = self(x)
        wanted = [maps[index] for index in taken]
        if output_fmt == "NHWC":
            wanted = [each.permute(0, 2, 3, 1).contiguous() for each in wanted]
        return wanted if intermediates_only else (maps[-1], wanted)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last map, [B, C, ceil(H / 32), ceil(W / 32)].

        Args:
            x: Images [B, I, H, W], as for ``vitadapter_fast.ViTAdapter``.
        """
        return self(x)[-1]  # type: ignore[no-any-return]

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Fix the layers that serve only maps which nobody takes.

        Args:
            indices: Of the maps that are taken, as for ``forward_intermediates``.
            prune_norm: Without effect: each map is behind a norm of its own.
            prune_head: Without effect: there is none.

        Returns:
            The indexes, 0 to 3.
        """
        taken: list[int] = feature_take_indices(len(_ALL), indices)[0]
        fix_unused(self, [index in taken for index in _ALL])
        return taken

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that are no vectors and have no weight decay."""
        return set(TOKENS)

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """Return a function of a parameter's name to its layer, as in ``layer_decay_groups``.

        Args:
            coarse: Whether all blocks of a stage are one layer.
        """
        depth = len(self.blocks)
        ends = [last + 1 for _, last in self._stage_bounds]

        def layer(name: str) -> int:
            layer = layer_of(name, depth)
            if not coarse or layer == 0:
                return layer
            return 1 + sum(end < layer for end in ends)

        return layer

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Let training recompute activations, or not: ``with_cp`` of ``ViTAdapter``."""
        recompute_activations(self, enable)

    def load_pretrained(self, checkpoint_path: Path) -> None:
        """Load a file, folder, name or address, as ``load_checkpoint`` does."""
        load_checkpoint(self, checkpoint_path)


class FeatureMaps(FeatureGetterNet):
    """What ``features_only=True`` gives: a model that returns a list of the chosen maps.

    Beside what timm's own has, it answers for the model inside where optimizers ask.
    """

    model: ViTAdapter

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that are no vectors and have no weight decay."""
        return {_PREFIX + name for name in self.model.no_weight_decay()}

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """Return a function of a parameter's name to its layer; as that of the model."""
        layer = self.model.group_matcher(coarse)
        return lambda name: layer(name.removeprefix(_PREFIX))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Let training recompute activations, or not."""
        self.model.set_grad_checkpointing(enable)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> _IncompatibleKeys:
        """Copy tensors into the model: of such a one, or what that inside takes."""
        if self.state_dict().keys().isdisjoint(state_dict):
            return self.model.load_state_dict(state_dict, strict, assign)
        return super().load_state_dict(state_dict, strict, assign)  # type: ignore[no-any-return]


def _config(size: str) -> dict[str, Any]:
    """Return timm's description of a published model and its weights."""
    weights, family = published_weights(size) or "", family_of(size)
    official = official_model(weights)
    return {
        "url": official and official.url,
        "hf_hub_id": repository(weights),
        "input_size": (3, 512, 512),
        "min_input_size": (3, MIN_SIZE, MIN_SIZE),
        "crop_pct": 1.0,
        "mean": MEAN,
        "std": STD,
        "num_classes": 0,
        "first_conv": ("patch_embed.proj", "spm.stem.0"),
        "license": {"dinov2": "apache-2.0", "dinov3": "dinov3-license"}[family],
        "origin_url": f"https://github.com/facebookresearch/{family}",
        "paper_ids": ("arXiv:2205.08534", _PAPERS[family]),
    }


def _create(
    size: str,
    pretrained: bool | Path | None,
    *,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    pretrained_model_args: dict[str, Any] | None = None,
    cache_dir: Path | None = None,
    features_only: bool = False,
    out_indices: int | Sequence[int] | None = None,
    num_classes: int | None = 0,
    img_size: int | Sequence[int] | None = None,
    **settings: Any,
) -> nn.Module:
    name = registered_name(size)
    check_keywords(name, settings, _KEYWORDS, _ELSEWHERE)
    if num_classes:
        raise ValueError(
            f"{name}: num_classes must be 0, got {num_classes}: the model has no classifier; "
            "put one on forward_features(image), [B, C, H / 32, W / 32]"
        )
    if out_indices is not None and not features_only:
        raise ValueError(f"{name}: out_indices={out_indices!r} needs features_only=True")
    # timm reads these, too: it fills in channels from its config, and notes the size.
    noted = {
        "in_chans": settings.pop("in_chans", None),
        "img_size": img_size,
        "out_indices": out_indices,
    }
    if img_size is not None:
        settings["img_size"] = _side(name, img_size)
        settings.setdefault("pretrain_size", settings["img_size"])
    settings = model_kwargs(size, **settings)
    weights: Path | None = None
    if pretrained is True:
        if _is_default(name, pretrained_cfg, pretrained_cfg_overlay):
            weights = published_weights(size)
    elif pretrained is not None and pretrained is not False:
        if not isinstance(pretrained, (str, os.PathLike)):
            raise TypeError(
                f"{name}: pretrained must be True, False, or a file, folder, name or address of "
                f"weights, got {pretrained!r}"
            )
        weights = pretrained
    if weights is not None and cache_dir is not None:
        raise ValueError(
            f"{name}: cache_dir is for weights that timm fetches, and {weights} is not; it goes "
            "where TORCH_HOME (DINOv2) or HF_HOME (DINOv3) says"
        )

    def build(in_chans: int, img_size: object = None) -> ViTAdapter:
        return ViTAdapter(**settings, in_chans=in_chans, pretrained=weights)

    model: nn.Module = build_model_with_cfg(
        build,
        name,
        pretrained is True and weights is None,
        pretrained_cfg=pretrained_cfg,
        pretrained_cfg_overlay=pretrained_cfg_overlay,
        pretrained_model_args=pretrained_model_args,
        feature_cfg={"out_indices": _ALL, "feature_cls": FeatureMaps},
        kwargs_filter=("num_classes",),
        cache_dir=cache_dir,
        features_only=features_only,
        **{key: value for key, value in noted.items() if value is not None},
    )
    return model


def _side(name: str, img_size: int | Sequence[int]) -> int:
    """Return the side of the square that the position table is for."""
    if not isinstance(img_size, Sequence):
        return img_size
    if len(img_size) != 2 or img_size[0] != img_size[1]:
        raise ValueError(
            f"{name}: img_size must be one number or two equal ones, got {img_size!r}: the table "
            "of positions is square; leave it out, images may have any size"
        )
    return img_size[0]


def _is_default(name: str, config: Any, overlay: dict[str, Any] | None) -> bool:
    """Return whether nobody told timm to take other weights than the published ones."""
    asked, default = resolve_pretrained_cfg(name, config, overlay), get_pretrained_cfg(name)
    return all(getattr(asked, key) == getattr(default, key) for key in _SOURCES)


def _entry_point(size: str) -> Callable[..., nn.Module]:
    def create(pretrained: bool | Path = False, **kwargs: Any) -> nn.Module:
        return _create(size, pretrained, **kwargs)

    create.__name__ = create.__qualname__ = registered_name(size)
    create.__doc__ = f"""Build ``vit_adapter({size!r})``, for ``timm.create_model``.

    Args:
        pretrained: True for the published weights, or what ``load_checkpoint`` takes: a file,
            folder, name or address.
        **kwargs: Those of ``timm.create_model``, and of ``vitadapter_fast.ViTAdapter``.

    Raises:
        TypeError: A keyword is unknown, or a setting of another type.
        ValueError: A setting is out of range or disagrees with another.
        CheckpointError: ``pretrained`` does not fit.
    """
    return create


# Where register_model looks for them.
default_cfgs = generate_default_cfgs({registered_name(size): _config(size) for size in MODELS})
for _size in MODELS:
    globals()[registered_name(_size)] = register_model(_entry_point(_size))
