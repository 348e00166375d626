# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Image size in; token grids, padded image and cropped maps out."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

STRIDES = (4, 8, 16, 32)
PATCH_SIZE = 16
# The coarsest stride: then every stride divides the padded image.
SIZE_MULTIPLE = 32


class Grids(NamedTuple):
    """Sizes of the token grids of one image.

    Attributes:
        vit_hw: (h, w) of the ViT tokens, at 1/16.
        prior_hw: (h, w) of the prior tokens, at 1/8, 1/16 and 1/32, in the order of concatenation.
    """

    vit_hw: tuple[int, int]
    prior_hw: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


def check_image(image: Tensor, in_chans: int) -> None:
    """Raise TypeError or ValueError unless these are ``in_chans``-channel images with a grid.

    And RuntimeError where torch's older ONNX exporter traces them, which knows no operator of ours.
    """
    if torch._C._get_tracing_state() is not None and torch.onnx.is_in_onnx_export():
        raise RuntimeError(
            "ViTAdapter: torch.onnx.export(dynamo=False) cannot export this model; python -m "
            "vitadapter_fast export writes ONNX that is checked, as does vitadapter_fast.export"
        )
    if not isinstance(image, Tensor):
        remedy = "make a float tensor of it"
        if isinstance(image, (list, tuple)):
            remedy = "torch.stack images of one size, or pass each as image[None] by itself"
        raise TypeError(
            f"ViTAdapter: image must be one tensor [B, {in_chans}, H, W], got a "
            f"{type(image).__name__}; {remedy}"
        )
    if image.dim() != 4 or image.shape[1] != in_chans:
        raise ValueError(
            f"ViTAdapter: image must be [B, {in_chans}, H, W], got {tuple(image.shape)}; "
            "set in_chans for other images"
        )
    if image.shape[2] < SIZE_MULTIPLE or image.shape[3] < SIZE_MULTIPLE:
        raise ValueError(
            "ViTAdapter: image must be at least 32 x 32, the coarsest stride, got "
            f"{image.shape[2]} x {image.shape[3]}; enlarge it"
        )
    if not image.is_floating_point():
        raise ValueError(
            f"ViTAdapter: image must be a floating tensor, got {image.dtype}; convert it with "
            ".float() and normalize it"
        )


def grids_of(image: Tensor) -> Grids:
    """Return the token grids of ``image``, [B, I, H, W] with H and W multiples of 32."""
    H, W = image.shape[2:]
    return Grids((H // 16, W // 16), ((H // 8, W // 8), (H // 16, W // 16), (H // 32, W // 32)))


def pad_image(image: Tensor) -> Tensor:
    """Pad [B, I, H, W] with zeros on the right and bottom to multiples of 32."""
    # Not -size % 32: a compiler of torch 2.13 fails on its symbol where maps are resized.
    pad_h, pad_w = (-(-size // SIZE_MULTIPLE) * SIZE_MULTIPLE - size for size in image.shape[2:])
    if torch.compiler.is_compiling() or pad_h or pad_w:  # compiled once for both
        return F.pad(image, (0, pad_w, 0, pad_h))
    return image


def crop_maps(
    maps: Sequence[Tensor], image_hw: tuple[int, int], memory_format: torch.memory_format
) -> list[Tensor]:
    """Crop maps at strides 4, 8, 16, 32 to ceil(``image_hw`` / stride), in a memory format."""
    H, W = image_hw
    return [
        # -(-a // b) is the ceiling of a / b.
        feature_map[:, :, : -(-H // stride), : -(-W // stride)].contiguous(
            memory_format=memory_format
        )
        for feature_map, stride in zip(maps, STRIDES, strict=True)
    ]


def split_prefix(x: Tensor, grids: Grids) -> tuple[Tensor, Tensor | None]:
    """Split ViT tokens [B, N, C] into the h * w of the image and the prefix, if there is one."""
    h, w = grids.vit_hw
    if x.shape[1] == h * w:
        return x, None
    return x[:, : h * w], x[:, h * w :]


def split_prior(tokens: Tensor, grids: Grids) -> tuple[Tensor, ...]:
    """Split prior tokens [B, Q, C] into those at 1/8, 1/16 and 1/32."""
    return torch.split(tokens, [h * w for h, w in grids.prior_hw], dim=1)
