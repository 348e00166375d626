# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny DINOv3 ViTs in every naming, and a model that takes them; shared by the checkpoint tests."""

import gzip
import json
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, TypeVar

import torch
from checkpoint_cases import DATA
from safetensors.torch import load_file
from torch import Tensor

from vitadapter_fast import ViTAdapter
from vitadapter_fast.presets import DINOV3_PRESETS

T = TypeVar("T")

GOLDEN = DATA / "golden" / "dinov3"
# By format and model, such as official_vits16.
DINOV3_KEYS: dict[str, dict[str, list[int]]] = json.loads(
    gzip.decompress((DATA / "checkpoint_keys" / "dinov3_keys.json.gz").read_bytes())
)
FFNS: dict[str, dict[str, Any]] = {
    "mlp": {},
    "swiglu": {"ffn": "swiglu", "mlp_ratio": 6.0},
}
DINOV3_TINY: dict[str, Any] = {
    "trunk": "dinov3",
    "embed_dim": 48,
    "depth": 6,
    "num_heads": 2,
    "conv_inplane": 8,
    "deform_num_heads": 2,
    "deform_ratio": 0.5,
    "interaction_indexes": [[0, 0], [1, 2], [3, 3], [4, 5]],
    "vit_features": "stages",
    "injectors": False,
    "final_norm": True,
}


def dinov3_model(**overrides: Any) -> ViTAdapter:
    """A ViTAdapter with the trunk of the golden files, with seeded weights."""
    torch.manual_seed(0)
    return ViTAdapter(**{**DINOV3_TINY, **overrides})


@cache
def on_meta(size: str) -> ViTAdapter:
    """A model of a published size, or of "l+", without values."""
    preset = DINOV3_PRESETS["l" if size == "l+" else size]
    stage = preset.depth // 4
    other = FFNS["swiglu"] if size == "l+" else {}
    settings = {
        "embed_dim": preset.embed_dim,
        "depth": preset.depth,
        "num_heads": preset.num_heads,
        "ffn": preset.ffn,
        "mlp_ratio": preset.mlp_ratio,
        "qkv_bias": preset.qkv_bias,
        "deform_num_heads": 16,
        "interaction_indexes": [[stage * i, stage * (i + 1) - 1] for i in range(4)],
    }
    with torch.device("meta"):
        return dinov3_model(**{**settings, **other})


def golden(format: str, ffn: str = "mlp") -> dict[str, Tensor]:
    """The tiny ViT's weights in the names of a format; one of its files is official for each."""
    if format == "official" and ffn == "mlp":
        return dict(torch.load(GOLDEN / "dinov3_tiny_mlp_official.pth", weights_only=True))
    return load_file(GOLDEN / f"dinov3_tiny_{ffn}_{format}.safetensors")


def golden_adapter() -> dict[str, Tensor]:
    """The tiny adapter's weights: of ``DINOv3_Adapter``, what is not its trunk."""
    return load_file(GOLDEN / "dinov3_adapter_tiny_weights.safetensors")


def under(prefix: str, tensors: Mapping[str, T]) -> dict[str, T]:
    """The tensors with a prefix before each name."""
    return {prefix + name: tensor for name, tensor in tensors.items()}


def whole_adapter() -> dict[str, Tensor]:
    """The state dict of the tiny ``DINOv3_Adapter``."""
    return golden_adapter() | under("backbone.", golden("official"))


def changed(
    tensors: dict[str, Tensor], end: str, change: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """The tensors, of which a function replaces those whose names have an end."""
    return {
        name: change(tensor) if name.endswith(end) else tensor for name, tensor in tensors.items()
    }


def without(end: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors but for those whose names have an end."""
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(end)}


def expected(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a model takes of an official file, written down apart from the package."""
    named: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name == "storage_tokens":
            named["register_tokens"] = tensor
        elif ".mlp.w1." in name:
            value = tensors[name.replace(".w1.", ".w2.")]
            named[name.replace(".w1.", ".w12.")] = torch.cat([tensor, value])
        elif name.endswith("qkv.bias"):
            named[name] = tensor * tensors[f"{name}_mask"]
        elif ".mlp.w2." not in name and not name.endswith(("mask", "mask_token", "periods")):
            named[name.replace("ls1.gamma", "gamma1").replace("ls2.gamma", "gamma2")] = tensor
    return named
