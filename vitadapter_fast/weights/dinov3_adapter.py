# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The state dict of a ViTAdapter with DINOv3's trunk in, that of DINOv3's own adapter out."""

import logging
from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..presets import DINOV3_PRESETS
from .dinov3 import BIAS, BIAS_MASK, LICENSE_NOTICE, PERIODS, exact_periods
from .files import listing
from .formats import ADAPTER_PREFIXES, without_wrappers
from .size import PATCH_KERNEL, vit_size

_TRUNK_PREFIXES = ("cls_token", "register_tokens", "patch_embed.", "blocks.", "norm.")
_HEADS = {(preset.embed_dim, preset.depth): preset.num_heads for preset in DINOV3_PRESETS.values()}

_log = logging.getLogger("vitadapter_fast")


def to_dinov3(
    state_dict: Mapping[str, Tensor], *, num_heads: int | None = None
) -> dict[str, Tensor]:
    """Give the weights of a model the names that DINOv3's own adapter, ``DINOv3_Adapter``, has.

    A file of the result holds DINOv3's weights, where the model's come from those: they stay under
    the DINOv3 License, a copy of which has to go with the file.

    Args:
        state_dict: Of a ``ViTAdapter`` with ``trunk="dinov3"``, ``injectors=False`` and
            ``final_norm=True``; floating, on any device, also meta. ``vit_features="stages"``,
            which no weight shows, is what ``DINOv3_Adapter`` does.
        num_heads: Of the ViT's attention, for its rotary periods; None for those of the published
            model of this size.

    Returns:
        The adapter's tensors under their names, then the ViT's under ``backbone.`` and official
        names, with ``bias_mask``, ``rope_embed.periods`` in bfloat16 and a ``mask_token`` of zeros;
        ``load_checkpoint`` reads all of it back bit for bit. What is not new is not copied, but for
        SwiGLU's first matrices.

    Raises:
        CheckpointError: The state dict is of another model; lists all reasons.
        ValueError: ``num_heads`` is not known, or gives heads without a multiple of 4 channels.
    """
    tensors = without_wrappers(state_dict)
    reasons = _reasons(tensors)
    if reasons:
        raise CheckpointError(f"to_dinov3: DINOv3_Adapter cannot hold this model: {reasons}")
    size = vit_size(tensors)
    assert size is not None
    heads = num_heads or _HEADS.get((size.embed_dim, size.depth))
    if heads is None or heads < 1 or size.embed_dim % (4 * heads):
        raise ValueError(
            "to_dinov3: wanted the num_heads that the model was built with, which gives heads with "
            f"a multiple of 4 channels, got {heads} for embed_dim={size.embed_dim}"
        )
    adapter = {n: tensor for n, tensor in tensors.items() if n.startswith(ADAPTER_PREFIXES)}
    kernel = tensors[PATCH_KERNEL]
    trunk = {
        "mask_token": kernel.new_zeros(1, size.embed_dim),
        PERIODS: exact_periods(size.embed_dim // heads // 4).to(kernel.device, torch.bfloat16),
    }
    for name, tensor in tensors.items():
        if name not in adapter:
            trunk.update(_official(name, tensor))
    _log.info("to_dinov3: %s", LICENSE_NOTICE)
    return adapter | {f"backbone.{name}": tensor for name, tensor in trunk.items()}


def _reasons(tensors: Mapping[str, Tensor]) -> str:
    """Say why tensors are none of a DINOv3 model without injectors, or ''."""
    if PATCH_KERNEL not in tensors or "level_embed" not in tensors:
        return f"it is no state dict of a ViTAdapter: no {PATCH_KERNEL} or no level_embed in it"
    found = {
        "its trunk is DINOv2's, with a position table": "pos_embed" in tensors,
        "it has injectors": any(".injector." in name for name in tensors),
        "it has no final norm (final_norm=True)": "norm.weight" not in tensors,
        "it has no register tokens": "register_tokens" not in tensors,
        "it has no LayerScale": "blocks.0.gamma1" not in tensors,
    }
    known = (*ADAPTER_PREFIXES, *_TRUNK_PREFIXES, "pos_embed")
    others = [name for name in tensors if not name.startswith(known)]
    found[f"it has more than a ViTAdapter: {listing(others)}"] = bool(others)
    return "; ".join(reason for reason, is_so in found.items() if is_so)


def _official(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Return a tensor of the ViT under the official name or names."""
    if name == "register_tokens":
        return {"storage_tokens": tensor}
    if ".mlp.w12." in name:
        # Copies: safetensors does not write two tensors of one memory.
        parts = [part.clone() for part in tensor.chunk(2)]
        return {name.replace(".w12.", f".w{i}."): part for i, part in enumerate(parts, start=1)}
    if name.endswith(BIAS):
        mask = torch.ones_like(tensor)
        # Officially keys have no bias; trained here they may have got one.
        if tensor.is_meta or not tensor.view(3, -1)[1].any():
            mask.view(3, -1)[1] = 0
        return {name: tensor, name.removesuffix(BIAS) + BIAS_MASK: mask}
    return {name.replace("gamma1", "ls1.gamma").replace("gamma2", "ls2.gamma"): tensor}
