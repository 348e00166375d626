# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Tensors of a ViT under transformers' names in, the same under official ones out."""

import re
from collections.abc import Mapping

from torch import Tensor

from .joined import Weight, joined

# By the name of its patch kernel one tells which model a file is of.
DINOV2_KERNEL = "embeddings.patch_embeddings.projection.weight"
DINOV3_KERNEL = "embeddings.patch_embeddings.weight"

_NAMES = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.register_tokens": "register_tokens",
    "embeddings.mask_token": "mask_token",
    DINOV2_KERNEL: "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}
_DINOV3_NAMES = {
    "embeddings.cls_token": "cls_token",
    "embeddings.register_tokens": "register_tokens",
    "embeddings.mask_token": "mask_token",
    DINOV3_KERNEL: "patch_embed.proj.weight",
    "embeddings.patch_embeddings.bias": "patch_embed.proj.bias",
}
_BLOCK = re.compile(r"encoder\.layer\.(\d+)\.(.+)\.(weight|bias|lambda1)")
# Files have the short form, the state dict of transformers' model the long one.
_DINOV3_BLOCK = re.compile(r"(?:model\.)?layer\.(\d+)\.(.+)\.(weight|bias|lambda1)")
# A part of a block -> (official part, index in the concatenation, parts of it).
# transformers renamed the attention and SwiGLU layers; files with either names are around.
_PARTS = {
    "norm1": ("norm1", 0, 1),
    "attention.attention.query": ("attn.qkv", 0, 3),
    "attention.attention.key": ("attn.qkv", 1, 3),
    "attention.attention.value": ("attn.qkv", 2, 3),
    "attention.q_proj": ("attn.qkv", 0, 3),
    "attention.k_proj": ("attn.qkv", 1, 3),
    "attention.v_proj": ("attn.qkv", 2, 3),
    "attention.output.dense": ("attn.proj", 0, 1),
    "attention.o_proj": ("attn.proj", 0, 1),
    "layer_scale1": ("ls1", 0, 1),
    "norm2": ("norm2", 0, 1),
    "mlp.fc1": ("mlp.fc1", 0, 1),
    "mlp.fc2": ("mlp.fc2", 0, 1),
    "mlp.weights_in": ("mlp.w12", 0, 1),
    "mlp.gate_proj": ("mlp.w12", 0, 2),
    "mlp.up_proj": ("mlp.w12", 1, 2),
    "mlp.weights_out": ("mlp.w3", 0, 1),
    "mlp.down_proj": ("mlp.w3", 0, 1),
    "layer_scale2": ("ls2", 0, 1),
}
# DINOv3's feed-forward has the names of SwiGLU's matrices also where it has no gate.
_UNGATED = {"mlp.up_proj": ("mlp.fc1", 0, 1), "mlp.down_proj": ("mlp.fc2", 0, 1)}


def from_hugging_face(backbone: Mapping[str, Tensor], *, is_dinov3: bool) -> dict[str, Weight]:
    """Return tensors under official names; what is not of the format keeps its name.

    Args:
        backbone: Under transformers' names, without a prefix.
        is_dinov3: The names are those of its DINOv3, not of its DINOv2.
    """
    is_gated = not is_dinov3 or any(".gate_proj." in name for name in backbone)
    names = _DINOV3_NAMES if is_dinov3 else _NAMES
    parts = _PARTS if is_gated else _PARTS | _UNGATED
    block = _DINOV3_BLOCK if is_dinov3 else _BLOCK

    def target_of(name: str) -> tuple[str, int, int]:
        match = block.fullmatch(name)
        if name in names:
            return names[name], 0, 1
        if match is None or match[2] not in parts:
            return name, 0, 1
        part, index, count = parts[match[2]]
        kind = "gamma" if match[3] == "lambda1" else match[3]
        return f"blocks.{match[1]}.{part}.{kind}", index, count

    return joined(backbone, target_of, fills_keys=is_dinov3)
