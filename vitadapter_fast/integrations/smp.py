# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""segmentation_models_pytorch's encoders: importing this module adds all published adapters.

After it, ``smp.Unet("vit_adapter_s", encoder_weights="dinov2_vits14")`` knows them. DPT takes those
of ``vitadapter_fast.integrations.timm``, as ``smp.DPT("tu-vit_adapter_s_dinov2")``.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..builders import MODELS, model_kwargs
from ..model.init import draw
from ..settings import check_counts
from ..weights.hub import repository
from ..weights.patch_kernel import with_channels
from ._common import (
    MODEL_KEYWORDS,
    ForeignWeights,
    check_keywords,
    family_of,
    fix_unused,
    missing,
    published_weights,
    registered_name,
)

try:
    from segmentation_models_pytorch.encoders import encoders
    from segmentation_models_pytorch.encoders._base import EncoderMixin
except ModuleNotFoundError as error:
    raise missing(__name__, error, "pip install 'segmentation-models-pytorch>=0.6.0'") from error

# Features of smp are numbered by powers of two: 0 is the image, and the maps are 2 to 5.
_FIRST_MAP, _DEPTH = 2, 5
_HUGGING_FACE = {"s": "small", "b": "base", "l": "large", "g": "giant"}
_ELSEWHERE = {
    **dict.fromkeys(
        ("pretrained", "patch_method"),
        "load_checkpoint(model.encoder, FILE) after the model is built",
    ),
    "in_chans": "it is in_channels= of the architecture",
}
_KEYWORDS = MODEL_KEYWORDS - _ELSEWHERE.keys()


class ViTAdapterEncoder(ForeignWeights, EncoderMixin):
    """The adapter as an encoder; its parameter names are the original's."""

    # Its kernels are not for torch.jit.script.
    _is_torch_scriptable = False

    def __init__(
        self,
        size: str,
        overrides: Mapping[str, Any],
        *,
        depth: int = _DEPTH,
        output_stride: int = 32,
    ) -> None:
        """Build the encoder, with random weights.

        Args:
            size: The published model, as for ``vit_adapter``.
            overrides: Keywords of ``ViTAdapter`` that replace the model's.
            depth: Of the encoder: 5 for all maps, down to 2 for that of stride 4 alone; layers that
                serve only others take no gradients.
            output_stride: 32.

        Raises:
            TypeError: A keyword is unknown.
            ValueError: A setting is out of range or disagrees with another.
        """
        check_keywords("ViTAdapterEncoder", overrides, _KEYWORDS, _ELSEWHERE)
        if output_stride != 32:
            raise ValueError(
                f"ViTAdapterEncoder: output_stride must be 32, got {output_stride}: the maps have "
                "strides 4 to 32, and no layer that could be dilated; DeepLabV3 cannot be built on "
                "it, PAN can, with encoder_output_stride=32"
            )
        if not _FIRST_MAP <= depth <= _DEPTH:
            raise ValueError(
                f"ViTAdapterEncoder: depth must be from {_FIRST_MAP} to {_DEPTH}, got {depth}"
            )
        super().__init__(**model_kwargs(size, **overrides))
        self._depth = depth
        self._in_channels = 3
        self._output_stride = output_stride
        # There is no map of stride 2; in its place stands one without channels.
        self._out_channels = [3, 0, *[self.embed_dim] * len(self.strides)]
        fix_unused(self, [_FIRST_MAP + index <= depth for index in range(len(self.strides))])

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the image, a tensor without channels, and the maps up to ``depth``.

        Args:
            image: [B, I, H, W], as for ``ViTAdapter``.

        Returns:
            [B, I, H, W], [B, 0, H // 2, W // 2], and [B, C, ceil(H / s), ceil(W / s)] for s = 4, 8,
            16, 32.
        """
        maps = super().forward(image)
        B, _, H, W = image.shape
        features = [image, image.new_empty(B, 0, H // 2, W // 2), *maps]
        return features[: self._depth + 1]

    def set_in_channels(self, in_channels: int, pretrained: bool = True) -> None:
        """Take images of other channels.

        Args:
            in_channels: Of the images.
            pretrained: Whether the kernels that read the image stay, with their channels summed or
                repeated as by ``load_checkpoint``; else they are drawn anew.
        """
        check_counts(in_channels=in_channels)
        if in_channels == self.in_chans:
            return
        stem = self.spm.stem[0]
        assert isinstance(stem, nn.Conv2d)
        for layer, is_adapter in ((self.patch_embed.proj, False), (stem, True)):
            kernel = with_channels(layer.weight.detach(), in_channels)
            layer.weight = nn.Parameter(kernel, requires_grad=layer.weight.requires_grad)
            layer.in_channels = in_channels
            if not pretrained:
                draw(layer, is_adapter=is_adapter)
        self.in_chans = self._in_channels = self._out_channels[0] = in_channels


def register_encoder(name: str, size: str, **overrides: Any) -> None:
    """Add an encoder of other settings to smp's, which hands on none to encoders.

    Args:
        name: What ``encoder_name`` will be; one that is there is replaced.
        size: The published model, as for ``vit_adapter``.
        **overrides: Keywords of ``ViTAdapter`` that replace the model's.

    Raises:
        TypeError: A keyword is unknown.
        ValueError: There is no such size.
    """
    check_keywords("register_encoder", overrides, _KEYWORDS, _ELSEWHERE)
    model_kwargs(size, **overrides)
    encoders[name] = {
        "encoder": ViTAdapterEncoder,
        "params": {"size": size, "overrides": overrides},
        "pretrained_settings": _pretrained_settings(size),
    }


def _pretrained_settings(size: str) -> dict[str, dict[str, str]]:
    """Return where smp downloads the ViT, by the names of ``load_checkpoint``."""
    name = published_weights(size)
    # smp downloads one file, and that of 7B is in parts.
    if name is None or size == "dinov3-7b":
        return {}
    if family_of(size) == "dinov2":
        end = _HUGGING_FACE[size]
        repositories = {
            name: f"facebook/dinov2-{end}",
            f"{name}_reg": f"facebook/dinov2-with-registers-{end}",
        }
    else:
        repositories = {name: repository(name) or ""}
    return {each: {"repo_id": repo, "revision": "main"} for each, repo in repositories.items()}


for _size in MODELS:
    register_encoder(registered_name(_size).removesuffix("_dinov2"), _size)
