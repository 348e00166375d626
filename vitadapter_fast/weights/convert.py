# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Named tensors of a DINOv2 model with patch size 14 in, those for patch size 16 out."""

import logging
from collections.abc import Mapping

from torch import Tensor

from ..errors import CheckpointError
from .files import listing
from .formats import find_heads, official_problems, recognize, rename_layer_scale
from .joined import whole
from .patch_kernel import PatchMethod, check_method, resample_patch_kernel
from .size import PATCH_KERNEL

_log = logging.getLogger("vitadapter_fast")


def convert_14to16(
    tensors: Mapping[str, Tensor], *, method: PatchMethod = "bilinear", source: str = "checkpoint"
) -> dict[str, Tensor]:
    """Turn the tensors of a DINOv2 model with patch 14 into those that ViT-Adapter trains from.

    Args:
        tensors: A DINOv2 ViT in official, Hugging Face or timm names.
        method: See ``resample_patch_kernel``.
        source: Where the tensors come from, for messages.

    Returns:
        Official names in the order of ``tensors``, without the mask token, LayerScale as ``gamma1``
        and ``gamma2``, and the patch kernel at size 16.

    Raises:
        CheckpointError: The tensors are not a whole DINOv2 ViT with patch size 14; those of DINOv3
            need no conversion.
        ValueError: The method is unknown.
    """
    check_method(method)
    recognized = recognize(tensors, source)
    if recognized.format in ("upstream", "dinov3_adapter", "adapter"):
        raise CheckpointError(
            f"{source}: a trained ViT-Adapter checkpoint, which needs no conversion"
        )
    if recognized.is_dinov3:
        raise CheckpointError(
            f"{source}: a DINOv3 ViT, which has patch size 16 already and loads as it is"
        )
    official = recognized.tensors
    if recognized.format == "converted":
        raise CheckpointError(f"{source}: already converted; use it as it is")
    if official[PATCH_KERNEL].shape[2:] == (16, 16):
        raise CheckpointError(f"{source}: already has patch size 16; use it as it is")
    # The original's converter keeps what else an official file has.
    is_official = recognized.format == "official"
    heads = () if is_official else find_heads(official)
    official = {name: tensor for name, tensor in official.items() if name not in heads}
    problems = official_problems(official, may_have_others=is_official)
    if problems:
        raise CheckpointError(f"{source}: not a DINOv2 checkpoint: {problems}")
    if official[PATCH_KERNEL].shape[2:] != (14, 14):
        raise CheckpointError(
            f"{source}: not a DINOv2 checkpoint: wanted patch size 14, got "
            f"{tuple(official[PATCH_KERNEL].shape[2:])}"
        )
    ignored = heads + recognized.ignored
    if ignored:
        _log.info("%s: left out, not of the ViT: %s", source, listing(ignored))
    converted = {
        name: whole(tensor)
        for name, tensor in rename_layer_scale(official).items()
        if "mask_token" not in name
    }
    converted[PATCH_KERNEL] = resample_patch_kernel(converted[PATCH_KERNEL], 16, method)
    return converted
