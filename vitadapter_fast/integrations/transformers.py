# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""transformers' backbone: a config and a model, which importing this module registers.

After it, ``AutoConfig``, ``AutoModel`` and ``AutoBackbone`` know "vit_adapter", so that detectors
and segmentors of transformers take a ``ViTAdapterConfig`` as their ``backbone_config``.
"""

import difflib
import os
import tempfile
from collections.abc import Callable, Sequence
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..builders import model_kwargs
from ..model import ViTAdapter
from ..model.deform_attn import DeformAttn
from ..model.init import draw
from ..weights import LoadReport, PatchMethod, load_checkpoint
from ._common import (
    LOADING,
    MODEL_KEYWORDS,
    SETTINGS,
    check_keywords,
    fix_unused,
    missing,
    recompute_activations,
)
from .hub_files import CARD, PREPROCESSOR, PREPROCESSOR_CONFIG, model_card, write_new

try:
    from huggingface_hub import CommitInfo, HfApi
    from transformers import AutoBackbone, AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
    from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
    from transformers.modeling_outputs import BackboneOutput
except ModuleNotFoundError as error:
    raise missing(__name__, error, "pip install 'transformers>=5.23'") from error

STAGES = ("stage1", "stage2", "stage3", "stage4")

_CODE = """\
from vitadapter_fast.integrations.transformers import ViTAdapterBackbone

backbone = ViTAdapterBackbone.from_pretrained("this repository")
maps = backbone(pixel_values).feature_maps"""


class ViTAdapterConfig(BackboneConfigMixin, PreTrainedConfig):  # type: ignore[misc]
    """What a ``ViTAdapterBackbone`` is built from; ``ViTAdapterConfig("b")`` is a published model.

    Attributes:
        stage_names: Of the maps of stride 4, 8, 16 and 32.
        out_features: Those of them that the backbone returns; all unless chosen.
        out_indices: Their indexes, 0 to 3.
    """

    model_type = "vit_adapter"
    attribute_map = {
        "hidden_size": "embed_dim",
        "num_hidden_layers": "depth",
        "num_attention_heads": "num_heads",
        "image_size": "img_size",
        "num_channels": "in_chans",
    }

    def __init__(
        self,
        size: str = "s",
        *,
        out_features: list[str] | None = None,
        out_indices: list[int] | None = None,
        **settings: Any,
    ) -> None:
        """Set all keywords of ``ViTAdapter`` as attributes.

        Args:
            size: A published model: "s", "b", "l", "g", "dinov3-s" and so on.
            out_features: Names of the maps to return, in order.
            out_indices: The same as indexes.
            **settings: Keywords of ``ViTAdapter`` that replace the model's, and those of
                ``PreTrainedConfig``.

        Raises:
            TypeError: A keyword is nearly one of ``ViTAdapter``, or loads weights.
            ValueError: There is no such size; the maps are not of ``stage_names``, or not in order.
        """
        names = {self.attribute_map.get(name, name): name for name in settings}
        own = {name: settings.pop(given) for name, given in names.items() if name in SETTINGS}
        _check_others(settings)
        for name, value in {**SETTINGS, **model_kwargs(size, **own)}.items():
            setattr(self, name, value)
        self.stage_names = list(STAGES)
        if out_features is None and out_indices is None:
            out_features = list(STAGES)
        self.set_output_features_output_indices(out_features, out_indices)
        super().__init__(**settings)

    def model_kwargs(self) -> dict[str, Any]:
        """Return the keywords of ``ViTAdapter``."""
        return {name: getattr(self, name) for name in SETTINGS}


def _check_others(given: dict[str, Any]) -> None:
    """Raise TypeError for misspelt settings: ``PreTrainedConfig`` would keep them as its own."""
    for name in given:
        if name in LOADING:
            raise TypeError(
                f"ViTAdapterConfig: {name!r} loads weights, and a config has none; build the model "
                "and call load_backbone_weights(model, FILE)"
            )
        near = difflib.get_close_matches(name, MODEL_KEYWORDS, n=1, cutoff=0.8)
        if near:
            raise TypeError(
                f"ViTAdapterConfig: unknown keyword {name!r} (did you mean {near[0]!r}?)"
            )


class ViTAdapterBackbone(BackboneMixin, PreTrainedModel):  # type: ignore[misc]
    """A ``ViTAdapter`` as a backbone of transformers.

    ``from_pretrained`` and ``save_pretrained`` read and write folders and repositories of the hub;
    ``load_backbone_weights`` loads DINOv2's and DINOv3's files and those of ViT-Adapter.

    Attributes:
        model: The ``ViTAdapter``.
        channels: Of the maps that are returned.
    """

    config_class = ViTAdapterConfig
    base_model_prefix = "vit_adapter"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    has_attentions = False
    supports_gradient_checkpointing = True
    _no_split_modules = ["PatchEmbed", "SpatialPrior", "Block", "Interaction"]
    # Its attention is its own, so that it takes whichever the model around it asks for.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True

    def __init__(self, config: ViTAdapterConfig) -> None:
        """Build the model of ``config``, with random weights.

        Raises:
            TypeError: A setting is of another type.
            ValueError: A setting is out of range or disagrees with another.
        """
        super().__init__(config)
        self.model = ViTAdapter(**config.model_kwargs())
        self.num_features = [config.embed_dim] * len(STAGES)
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> BackboneOutput | tuple[Any, ...]:
        """Return the feature maps.

        Args:
            pixel_values: [B, I, H, W], as for ``ViTAdapter``: normalized, H and W at least 32.
            output_hidden_states: Whether ``hidden_states`` holds the maps of all four stages.
            output_attentions: Without effect: there are no attention weights to return.
            return_dict: False for a tuple of what would be in the output.

        Returns:
            ``feature_maps``: [B, C, ceil(H / s), ceil(W / s)] for each of ``out_features``.

        Raises:
            ValueError: The image has another shape or type.
        """
        maps = dict(zip(STAGES, self.model(pixel_values), strict=True))
        wants_all = _or_default(output_hidden_states, self.config.output_hidden_states)
        output = BackboneOutput(
            feature_maps=tuple(maps[name] for name in self.out_features),
            hidden_states=tuple(maps.values()) if wants_all else None,
        )
        as_dict = _or_default(return_dict, self.config.return_dict)
        return output if as_dict else output.to_tuple()

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether training recomputes activations: ``with_cp`` of ``ViTAdapter``."""
        return self.model.with_cp

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, enable: bool) -> None:
        recompute_activations(self.model, enable)

    def _initialize_weights(self, module: nn.Module, *args: Any, **kwargs: Any) -> None:
        """Draw weights, and at last fix what shall not train: loaded parameters all would."""
        super()._initialize_weights(module, *args, **kwargs)
        if module is self:
            fix_unused(self.model, [name in self.out_features for name in STAGES])
            if self.config.frozen_vit:
                self.model.freeze_vit()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Draw what a file lacks of one module; transformers asks for all modules in turn."""
        if all(map(_is_loaded, _tensors(module, recurse=False))):
            return
        attentions = (each for each in self.model.modules() if isinstance(each, DeformAttn))
        # It draws its layers together.
        owner = next((each for each in attentions if module in each.children()), module)
        loaded = [
            (tensor, tensor.clone())
            for tensor in _tensors(owner, recurse=owner is not module)
            if _is_loaded(tensor)
        ]
        beside_vit = (self.model.spm, self.model.interactions, self.model.up)
        draw(owner, is_adapter=any(module in part.modules() for part in beside_vit))
        for tensor, value in loaded:
            tensor.copy_(value)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        *,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Write config, weights, an image processor's config and a model card.

        The last two are left as they are where the folder has them.

        Args:
            save_directory: The folder; made if it does not exist.
            is_main_process: Whether this process writes what all share.
            push_to_hub: Whether ``push_to_hub`` follows, with those of its keywords that are given.
            **kwargs: As for ``PreTrainedModel.save_pretrained`` and ``push_to_hub``.

        Raises:
            TypeError: A keyword is unknown.
            CheckpointError: Card or config cannot be written.
        """
        check_keywords("save_pretrained", kwargs, _SAVE_KEYWORDS | _HUB_KEYWORDS)
        of_hub = {name: kwargs.pop(name) for name in _HUB_KEYWORDS & kwargs.keys()}
        super().save_pretrained(save_directory, is_main_process, **kwargs)
        if is_main_process and os.path.isdir(save_directory):
            self._write_companions(save_directory)
        if is_main_process and push_to_hub:
            of_hub.setdefault("repo_id", Path(save_directory).absolute().name)
            self.push_to_hub(**of_hub)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: bool | str | None = None,
        tags: Sequence[str] = (),
        max_shard_size: int | str = "50GB",
        commit_message: str = "Upload ViTAdapterBackbone",
        commit_description: str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
    ) -> CommitInfo:
        """Upload what ``save_pretrained`` writes; a model card that is there already stays.

        Args:
            repo_id: The repository, "owner/name"; made if it does not exist.
            private: Whether a new one is private.
            token: Of the hub; None for the stored one.
            tags: Of the model card, beside its own.
            max_shard_size: Of a file of weights.
            commit_message: Of the commit.
            commit_description: Likewise.
            revision: The branch; made if it does not exist.
            create_pr: Whether it becomes a pull request.
        """
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not create_pr:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            self._write_companions(folder, tags)
            self.save_pretrained(folder, max_shard_size=max_shard_size)
            if api.file_exists(repo_id, CARD, revision=revision):
                Path(folder, CARD).unlink()
            return api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=commit_message,
                commit_description=commit_description,
                revision=revision,
                create_pr=create_pr,
            )

    def _write_companions(self, folder: str | os.PathLike[str], tags: Sequence[str] = ()) -> None:
        card = model_card(self.model, library="transformers", code=_CODE, tags=tags)
        write_new(folder, CARD, card)
        write_new(folder, PREPROCESSOR, PREPROCESSOR_CONFIG)


def load_backbone_weights(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    patch_method: PatchMethod = "bilinear",
    prefer: str | None = None,
) -> LoadReport:
    """Copy a checkpoint into the one ``ViTAdapterBackbone`` that ``model`` is or has.

    transformers builds the backbone of a detector or segmentor from its config, with random
    weights; this comes after.

    Args:
        model: The backbone, or a model with one inside; changed in place.
        path: What ``load_checkpoint`` takes: a file, folder, name or address; of DINOv2, DINOv3 or
            a trained ViT-Adapter.
        patch_method: As for ``load_checkpoint``.
        prefer: As for ``load_checkpoint``.

    Raises:
        ValueError: There is not exactly one ``ViTAdapterBackbone``.
        CheckpointError: The file cannot be read or does not fit; the model is as it was.
    """
    backbones = [each for each in model.modules() if isinstance(each, ViTAdapterBackbone)]
    if len(backbones) != 1:
        raise ValueError(
            "load_backbone_weights: model must have one ViTAdapterBackbone inside, "
            f"{type(model).__name__} has {len(backbones)}; give it one as backbone_config="
            "ViTAdapterConfig(...), or call this for one of its parts"
        )
    return load_checkpoint(backbones[0].model, path, patch_method=patch_method, prefer=prefer)


def _or_default(given: bool | None, default: bool) -> bool:
    return default if given is None else given


def _tensors(module: nn.Module, *, recurse: bool) -> list[Tensor]:
    return [*module.parameters(recurse=recurse), *module.buffers(recurse=recurse)]


def _is_loaded(tensor: Tensor) -> bool:
    """Return whether a file had it; transformers' mark."""
    return getattr(tensor, "_is_hf_initialized", False)


def _keywords_of(method: Callable[..., Any]) -> set[str]:
    named = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    parameters = signature(method).parameters.values()
    return {each.name for each in parameters if each.kind in named} - {"self"}


_SAVE_KEYWORDS = _keywords_of(PreTrainedModel.save_pretrained)
# Of these save_pretrained has max_shard_size too, and keeps it.
_HUB_KEYWORDS = _keywords_of(ViTAdapterBackbone.push_to_hub) - _SAVE_KEYWORDS | {"token"}

AutoConfig.register(ViTAdapterConfig.model_type, ViTAdapterConfig, exist_ok=True)
AutoModel.register(ViTAdapterConfig, ViTAdapterBackbone, exist_ok=True)
AutoBackbone.register(ViTAdapterConfig, ViTAdapterBackbone, exist_ok=True)
