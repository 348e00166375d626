# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""What one call carries, and every check of it, shared by the op's backends and its fake."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .._arguments import FLOATS

MODES = ("bicubic", "bicubic_offset", "bicubic_antialias")


class Call(NamedTuple):
    """One call of ``patch_embed``.

    Attributes:
        image: [B, I, H, W].
        weight: Patch kernel, [C, I, p, p].
        bias: [C] or None.
        pos_embed: Position table, [pos_h * pos_w, C].
        pos_hw: (pos_h, pos_w) as a list.
        mode: How the table is resized, one of ``MODES``.
    """

    image: Tensor
    weight: Tensor
    bias: Tensor | None
    pos_embed: Tensor
    pos_hw: list[int]
    mode: str

    @property
    def grid_hw(self) -> tuple[int, int]:
        """(h, w) of the token grid; a remainder of the image on the right and bottom is unused."""
        patch_h, patch_w = self.weight.shape[2:]
        return self.image.shape[2] // patch_h, self.image.shape[3] // patch_w


def check(call: Call) -> None:
    """Raise ValueError unless all shapes, dtypes and devices agree."""
    image, weight, bias, pos_embed, pos_hw, mode = call
    if mode not in MODES:
        raise ValueError(f"patch_embed: mode must be one of {', '.join(MODES)}, got {mode!r}")
    if image.dim() != 4 or weight.dim() != 4 or image.shape[1] != weight.shape[1]:
        raise ValueError(
            "patch_embed: image must be [B, I, H, W] and weight [C, I, p, p], "
            f"got {tuple(image.shape)} and {tuple(weight.shape)}"
        )
    C, in_chans, patch_h, patch_w = weight.shape
    if min(in_chans, patch_h, patch_w) < 1:
        raise ValueError(
            "patch_embed: weight must have an input channel and patches of a pixel or more, got "
            f"{tuple(weight.shape)}"
        )
    if image.shape[2] < patch_h or image.shape[3] < patch_w:
        raise ValueError(
            f"patch_embed: image must be at least one {patch_h}x{patch_w} patch, "
            f"got {tuple(image.shape)}"
        )
    if bias is not None and bias.shape != (C,):
        raise ValueError(f"patch_embed: bias must be [{C}] or None, got {tuple(bias.shape)}")
    if len(pos_hw) != 2 or any(size < 1 for size in pos_hw):
        raise ValueError(f"patch_embed: pos_hw must be two positive sizes, got {list(pos_hw)}")
    if pos_embed.shape != (pos_hw[0] * pos_hw[1], C):
        raise ValueError(
            f"patch_embed: pos_embed must be [{pos_hw[0]} * {pos_hw[1]}, {C}] (no cls row) to "
            f"match pos_hw and weight, got {tuple(pos_embed.shape)}"
        )
    for name, tensor in (("image", image), ("weight", weight), ("bias", bias), ("pos", pos_embed)):
        if tensor is None:
            continue
        if tensor.dtype not in FLOATS:
            raise ValueError(f"patch_embed: {name} must be a floating tensor, got {tensor.dtype}")
        if tensor.device != image.device:
            raise ValueError(
                f"patch_embed: {name} must be on {image.device} with image, got {tensor.device}"
            )
        if name != "pos" and tensor.dtype != image.dtype:
            raise ValueError(
                f"patch_embed: {name} must be {image.dtype} like image, got {tensor.dtype}"
            )


def result_dtype(call: Call) -> torch.dtype:
    """Return the dtype of the tokens with positions."""
    return torch.promote_types(call.image.dtype, call.pos_embed.dtype)


def new_outputs(call: Call) -> Tensor:
    """Return memory for the tokens with positions, [B, h * w, C]."""
    h, w = call.grid_hw
    shape = call.image.shape[0], h * w, call.weight.shape[0]
    return call.image.new_empty(shape, dtype=result_dtype(call))


def flops(call: Call) -> int:
    """Return 2 for every token and element of the patch kernel."""
    h, w = call.grid_hw
    return 2 * call.image.shape[0] * h * w * call.weight.numel()


def backward_flops(call: Call, needs: Sequence[bool]) -> int:
    """Return the same for each gradient of image and kernel."""
    return flops(call) * (needs[0] + needs[1])
