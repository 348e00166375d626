# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A config of mmdet 3, mmseg 1 or another OpenMMLab framework in, backbone and optimizer out.

In a config: ``custom_imports = dict(imports=["vitadapter_fast.integrations.mmdet"])``. The
original has two ViT-Adapters with the same keywords and tensors, one for detection and one for
segmentation; here it is mmengine's scope and registry that tell which is meant.
"""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any, TypeAlias

from torch import Tensor, nn
from typing_extensions import Self

from .. import model as models
from ..errors import CheckpointError
from ..optim import layer_decay_groups
from ..weights import PatchMethod, load_checkpoint
from ._common import MODEL_KEYWORDS, check_keywords, check_out_indices, fix_unused, missing

try:
    from mmengine.fileio import get_local_path
    from mmengine.model import BaseModule
    from mmengine.optim import DefaultOptimWrapperConstructor
    from mmengine.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS, DefaultScope
except ModuleNotFoundError as error:
    raise missing(
        __name__,
        error,
        "pip install mmengine mmcv==2.1.0 mmdet==3.3.0 or mmsegmentation==1.2.2; or, under the "
        "same names, onedl-mmengine onedl-mmcv onedl-mmdetection or onedl-mmsegmentation",
    ) from error

_log = logging.getLogger("vitadapter_fast")

InitConfig: TypeAlias = Mapping[str, Any] | Sequence[Mapping[str, Any]] | None
Path: TypeAlias = str | os.PathLike[str]

_OWN_KEYWORDS = ("out_indices", "frozen_stages", "norm_cfg", "norm_eval", "init_cfg")
_PRETRAINED_KEYWORDS = ("type", "checkpoint", "prefix", "map_location")
_LAYER_DECAY_KEYWORDS = ("layer_decay_rate", "num_layers")
# The prefix in detectors and segmentors, which the loader finds by itself.
_USUAL_PREFIX = "backbone"


# mmengine's own registry: those of mmdet, mmseg and the others look there for what they lack.
@MODELS.register_module()
class ViTAdapter(models.ViTAdapter, BaseModule):
    """The backbone with the conventions of OpenMMLab; its parameter names are the original's.

    Attributes:
        out_indices: The maps that ``forward`` returns.
        pretrained: The checkpoint that ``init_weights`` loads, or None.
    """

    _is_init: bool
    # Of the original's code for the framework.
    _default_vit_features = "last"

    def __init__(
        self,
        *,
        pretrained: Path | None = None,
        patch_method: PatchMethod = "bilinear",
        vit_features: str | None = None,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        norm_cfg: Mapping[str, Any] | None = None,
        norm_eval: bool = False,
        init_cfg: InitConfig = None,
        **kwargs: Any,
    ) -> None:
        """Build the backbone; no checkpoint is read before ``init_weights``.

        Args:
            pretrained: Checkpoint in any format that ``load_checkpoint`` knows, a URL, or None.
            patch_method: How its patch kernel is resized, as in ``vitadapter_fast.ViTAdapter``.
            vit_features: What the pyramid adds, "last" or "stages", as in
                ``vitadapter_fast.ViTAdapter``; None takes that of the original's code: "stages" in
                mmseg (built under its scope or by its registry), "last" elsewhere.
            out_indices: Which maps to return: 0, 1, 2, 3 for strides 4, 8, 16, 32. Layers that
                serve only other maps take no gradients.
            frozen_stages: -1 trains everything. k from 0 fixes the patch embedding and the position
                table, and the ViT blocks of the first k stages, which then stay in eval mode. The
                adapter learns in any case; ``frozen_vit=True`` fixes the whole ViT for less memory,
                and cuts the image's gradient there.
            norm_cfg: The adapter's norms as mmcv builds them, as dict(type="SyncBN"); None takes
                ``norm`` ("auto" by default: SyncBN in training on several GPUs, else BN).
            norm_eval: Whether its batch norms keep their running statistics in training.
            init_cfg: Initializers of mmengine, run by ``init_weights``. Of type "Pretrained", it
                is another way to say ``pretrained``; its ``prefix`` chooses among several ViTs in
                the file.
            **kwargs: As for ``vitadapter_fast.ViTAdapter``: all keywords of the original's configs.

        Raises:
            TypeError: A keyword is unknown.
            ValueError: A setting is out of range or disagrees with another.
        """
        check_keywords("ViTAdapter", kwargs, {*MODEL_KEYWORDS, *_OWN_KEYWORDS})
        if norm_cfg is not None and "norm" in kwargs:
            raise ValueError(
                f"ViTAdapter: wanted norm_cfg or norm, got both, {dict(norm_cfg)} and "
                f"{kwargs['norm']!r}; remove one"
            )
        if vit_features is None:
            scope = DefaultScope.get_current_instance()
            is_in_mmseg = scope is not None and scope.scope_name == "mmseg"
            kind = SegmentationViTAdapter if is_in_mmseg else type(self)
            # Nothing is added: then neither are four stages needed, as in the original's light B.
            kind = kind if kwargs.get("add_vit_feature", True) else ViTAdapter
            vit_features = kind._default_vit_features
            _log.info("ViTAdapter: vit_features is %r unless set", vit_features)
        super().__init__(vit_features=vit_features, **kwargs)
        self.init_cfg = init_cfg
        self.pretrained = pretrained
        self.patch_method: PatchMethod = patch_method
        self._split_init_cfg()
        self.out_indices = check_out_indices("ViTAdapter", out_indices, len(self.strides))
        self.norm_eval = norm_eval
        if norm_cfg is not None:
            _replace_norms(self, norm_cfg)
        fix_unused(self, [index in self.out_indices for index in range(len(self.strides))])
        self._frozen = self._freeze(frozen_stages)

    # Necks and heads of OpenMMLab take tuples.
    def forward(self, image: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Return the maps of ``out_indices``, [B, C, ceil(H / s), ceil(W / s)] each.

        Args:
            image: [B, I, H, W], normalized by the data preprocessor; H and W at least 32.
        """
        maps = super().forward(image)
        return tuple(maps[index] for index in self.out_indices)

    def init_weights(self) -> None:
        """Run the initializers of ``init_cfg`` and load the checkpoint, once.

        Without either the weights stay those that the constructor drew. After a ``state_dict`` was
        loaded, or a second time, nothing happens.

        Raises:
            CheckpointError: The checkpoint does not fit; names every tensor at fault.
        """
        is_first = not self._is_init
        given = self.init_cfg
        self.init_cfg, pretrained, prefer = self._split_init_cfg()
        try:
            super().init_weights()
        finally:
            self.init_cfg = given
        if is_first and pretrained is not None:
            # Another attempt is possible if this one fails.
            self._is_init = False
            # mmengine's own loader would leave out what does not fit.
            with _local(os.fspath(pretrained)) as path:
                load_checkpoint(self, path, patch_method=self.patch_method, prefer=prefer)
            self._is_init = True

    def train(self, mode: bool = True) -> Self:
        """Set training mode; what is frozen, and with ``norm_eval`` batch norms, stay in eval."""
        super().train(mode)
        # Also called while the constructor runs.
        for module in getattr(self, "_frozen", ()):
            module.eval()
        if mode and getattr(self, "norm_eval", False):
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        if f"{prefix}patch_embed.proj.weight" in state_dict:
            self._is_init = True

    def _split_init_cfg(self) -> tuple[list[Mapping[str, Any]], Path | None, str | None]:
        """Return the initializers, the checkpoint, and which of its sets of weights to take."""
        given = self.init_cfg or []
        cfgs = [given] if isinstance(given, Mapping) else list(given)
        files = [self.pretrained] if self.pretrained is not None else []
        others, prefer = [], None
        for cfg in cfgs:
            kind = cfg.get("type")
            if getattr(kind, "__name__", kind) not in ("Pretrained", "PretrainedInit"):
                others.append(cfg)
                continue
            check_keywords('ViTAdapter init_cfg of type "Pretrained"', cfg, _PRETRAINED_KEYWORDS)
            if "checkpoint" not in cfg:
                raise ValueError(
                    'ViTAdapter: init_cfg of type "Pretrained" wants checkpoint=FILE, got '
                    f"{dict(cfg)}; add it"
                )
            files.append(cfg["checkpoint"])
            prefix = (cfg.get("prefix") or "").rstrip(".")
            prefer = prefix if prefix not in ("", _USUAL_PREFIX) else None
        if len(files) > 1:
            raise ValueError(
                "ViTAdapter: wanted one checkpoint, got "
                f"{' and '.join(str(file) for file in files)} in pretrained and init_cfg; remove "
                "all but one"
            )
        return others, files[0] if files else None, prefer

    def _freeze(self, stages: int) -> list[nn.Module]:
        """Fix the patch embedding and the blocks of the first stages; return them."""
        bounds = self._stage_bounds
        if type(stages) is not int or not -1 <= stages <= len(bounds):
            raise ValueError(
                f"ViTAdapter: frozen_stages must be from -1 (none) to {len(bounds)} (the blocks of "
                f"all stages), got {stages!r}"
            )
        if stages < 0:
            return []
        num_blocks = bounds[stages - 1][1] + 1 if stages else 0
        frozen: list[nn.Module] = [self.patch_embed, self.pos_drop, *self.blocks[:num_blocks]]
        for token in self._tokens():
            token.requires_grad_(False)
        for module in frozen:
            module.requires_grad_(False).eval()
        return frozen


class SegmentationViTAdapter(ViTAdapter):
    """The backbone as mmseg's registry has it: ``vit_features`` are "stages" unless set.

    Source: segmentation/ of https://github.com/czczup/ViT-Adapter, whose only difference it is.
    """

    _default_vit_features = "stages"


@OPTIM_WRAPPER_CONSTRUCTORS.register_module(
    # The second is the name in the original's configs.
    name=["ViTAdapterLayerDecay", "LayerDecayOptimizerConstructor"]
)
class ViTAdapterLayerDecay(DefaultOptimWrapperConstructor):
    """Optimizer wrappers whose learning rates decay towards the image; see ``optim.py``.

    In a config: ``optim_wrapper = dict(constructor="ViTAdapterLayerDecay",
    paramwise_cfg=dict(layer_decay_rate=0.7), optimizer=...)``.
    """

    def _validate_cfg(self) -> None:
        super()._validate_cfg()
        who = "ViTAdapterLayerDecay: paramwise_cfg"
        check_keywords(who, self.paramwise_cfg, _LAYER_DECAY_KEYWORDS)
        for value, wanted in (
            (self.paramwise_cfg.get("layer_decay_rate"), "paramwise_cfg.layer_decay_rate"),
            (self.base_lr, "optimizer.lr"),
            (self.base_wd, "optimizer.weight_decay"),
        ):
            if value is None:
                raise ValueError(
                    f"ViTAdapterLayerDecay: wanted a number in {wanted}, got none; set it, as in "
                    "the packaged configs"
                )

    def add_params(
        self,
        params: list[dict[str, Any]],
        module: nn.Module,
        prefix: str = "",
        is_dcn_module: float | None = None,
    ) -> None:
        """Append the parameter groups of a model with a ViTAdapter in it to ``params``.

        Args:
            params: Changed in place.
            module: The model.
            prefix: Not used: names are the model's.
            is_dcn_module: Not used: no layer is special.
        """
        params += layer_decay_groups(
            module,
            lr=self.base_lr,
            weight_decay=self.base_wd,
            layer_decay=self.paramwise_cfg["layer_decay_rate"],
            num_layers=self.paramwise_cfg.get("num_layers"),
        )


@contextmanager
def _local(name: str) -> Iterator[str]:
    """Fetch a checkpoint by mmengine's storage backends; its errors name it as the config does."""
    # These are load_checkpoint's own to fetch: once for all processes and runs.
    if name.startswith(("http://", "https://")):
        yield name
        return
    with get_local_path(name) as path:
        try:
            yield path
        except CheckpointError as error:
            raise CheckpointError(str(error).replace(os.fspath(path), name)) from error


def _replace_norms(backbone: models.ViTAdapter, norm_cfg: Mapping[str, Any]) -> None:
    """Put norms that mmcv builds in the places of the adapter's; the ViT keeps its own."""
    try:
        from mmcv.cnn import build_norm_layer
    except ModuleNotFoundError as error:
        raise missing(
            "ViTAdapter: norm_cfg", error, "install it, or use norm=... instead"
        ) from error

    for parent in (backbone, *backbone.spm.modules()):
        for name, norm in list(parent.named_children()):
            if not isinstance(norm, (nn.modules.batchnorm._BatchNorm, nn.GroupNorm)):
                continue
            try:
                _, built = build_norm_layer(dict(norm_cfg), len(norm.weight))
            except (AssertionError, KeyError, TypeError, ValueError) as error:
                raise ValueError(
                    "ViTAdapter: norm_cfg must be what mmcv builds a norm from, as "
                    'dict(type="SyncBN", requires_grad=True) or dict(type="GN", num_groups=32), '
                    f"got {norm_cfg}: {type(error).__name__} {error}"
                ) from error
            setattr(parent, name, built)


def _register(framework: str, backbone: type[ViTAdapter]) -> None:
    """Put a backbone into a framework's own registry, which comes before mmengine's.

    Without it ``type="mmdet.ViTAdapter"`` is not found in mmdet, and mmseg would not know its own.
    """
    if find_spec(framework) is None:
        return
    try:
        registry = import_module(f"{framework}.registry").MODELS
    # Mostly AssertionError: they know only some versions of mmcv and mmengine.
    except Exception as error:
        _log.debug("%s: not registered in %s: %s", __name__, framework, error)
        return
    other = registry.module_dict.get("ViTAdapter")
    if other is None:
        registry.register_module(name="ViTAdapter", module=backbone)
    else:
        _log.warning(
            '%s: %s has another "ViTAdapter" already, %s, which its configs build; name this one '
            '"mmengine.ViTAdapter"',
            __name__,
            framework,
            other.__module__,
        )


_register("mmdet", ViTAdapter)
_register("mmseg", SegmentationViTAdapter)
