# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""DINOv2 weights in every naming, built without the package; shared by the checkpoint tests."""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny import TINY
from torch import Tensor, nn

from vitadapter_fast import ViTAdapter

DATA = Path(__file__).parents[1] / "data"
KEY_LISTS: dict[str, dict[str, list[int]]] = json.loads(
    gzip.decompress((DATA / "checkpoint_keys" / "checkpoint_keys.json.gz").read_bytes())
)
# embed_dim, depth, hidden channels, and whether the feed-forward is SwiGLU.
MODELS = {
    "small": (384, 12, 1536, False),
    "base": (768, 12, 3072, False),
    "large": (1024, 24, 4096, False),
    "giant": (1536, 40, 4096, True),
}


def vit_shapes(
    embed_dim: int, depth: int, hidden: int, is_swiglu: bool, num_positions: int, patch: int
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the ViT inside ViTAdapter."""
    C = embed_dim
    ffn = (
        {"w12.weight": (2 * hidden, C), "w12.bias": (2 * hidden,), "w3.weight": (C, hidden)}
        if is_swiglu
        else {"fc1.weight": (hidden, C), "fc1.bias": (hidden,), "fc2.weight": (C, hidden)}
    )
    ffn["w3.bias" if is_swiglu else "fc2.bias"] = (C,)
    shapes: dict[str, tuple[int, ...]] = {
        "pos_embed": (1, num_positions, C),
        "patch_embed.proj.weight": (C, 3, patch, patch),
        "patch_embed.proj.bias": (C,),
    }
    for index in range(depth):
        block = f"blocks.{index}."
        for norm in ("norm1.", "norm2."):
            shapes[block + norm + "weight"] = shapes[block + norm + "bias"] = (C,)
        shapes[block + "attn.qkv.weight"] = (3 * C, C)
        shapes[block + "attn.qkv.bias"] = (3 * C,)
        shapes[block + "attn.proj.weight"] = (C, C)
        shapes[block + "attn.proj.bias"] = (C,)
        shapes[block + "gamma1"] = shapes[block + "gamma2"] = (C,)
        shapes.update({f"{block}mlp.{name}": shape for name, shape in ffn.items()})
    return shapes


def tiny_model(**overrides: Any) -> ViTAdapter:
    """A ViTAdapter of 4 x 4 positions and 32 channels, with seeded weights."""
    torch.manual_seed(0)
    return ViTAdapter(**{**TINY, **overrides})


def trained(**overrides: Any) -> dict[str, Tensor]:
    """State of another model, with all tensors away from their initial values."""
    model = tiny_model(**overrides)
    torch.manual_seed(7)
    return {
        name: torch.rand_like(tensor) if tensor.is_floating_point() else tensor + 5
        for name, tensor in model.state_dict().items()
    }


def in_detector(tensors: dict[str, Tensor], *heads: str) -> dict[str, Any]:
    """A trained backbone as OpenMMLab's trainers save it, with parts of these names beside it."""
    state = {f"backbone.{name}": tensor for name, tensor in tensors.items()}
    state |= {f"{head}.conv.weight": torch.ones(2) for head in heads}
    return {"meta": {"epoch": 3}, "state_dict": state}


def official(*, patch: int = 14, is_swiglu: bool = False, seed: int = 1) -> dict[str, Tensor]:
    """Random weights of the tiny model's ViT as DINOv2 publishes its own."""
    generator = torch.Generator().manual_seed(seed)
    # The model rounds the hidden channels of SwiGLU as DINOv2 does: 2/3 of 4 C, up to 8's multiple.
    shapes = vit_shapes(32, 4, 88 if is_swiglu else 128, is_swiglu, 17, patch)
    shapes = {
        "cls_token": (1, 1, 32),
        "pos_embed": shapes.pop("pos_embed"),
        "mask_token": (1, 32),
        **shapes,
        "norm.weight": (32,),
        "norm.bias": (32,),
    }
    names = {
        name: name.replace("gamma1", "ls1.gamma").replace("gamma2", "ls2.gamma") for name in shapes
    }
    return {names[name]: torch.randn(shapes[name], generator=generator) for name in shapes}


def with_registers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same model with four register tokens."""
    return {**tensors, "register_tokens": torch.ones(1, 4, 32)}


def adapted(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Official weights under ViTAdapter's names, without what it does not use."""
    unused = ("cls_token", "mask_token", "register_tokens", "norm.weight", "norm.bias")
    return {
        name.replace("ls1.gamma", "gamma1").replace("ls2.gamma", "gamma2"): tensor
        for name, tensor in tensors.items()
        if name not in unused
    }


def as_timm(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Official weights as timm publishes them."""
    named = {
        name.replace("mlp.w12", "mlp.fc1").replace("mlp.w3", "mlp.fc2"): tensor
        for name, tensor in tensors.items()
        if name != "mask_token"
    }
    if "register_tokens" in named:
        named["reg_token"] = named.pop("register_tokens")
        named["cls_token"] = named["cls_token"] + named["pos_embed"][:, :1]
        named["pos_embed"] = named["pos_embed"][:, 1:]
    return named


def as_hf(
    tensors: dict[str, Tensor], *, has_new_names: bool = False, prefix: str = ""
) -> dict[str, Tensor]:
    """Official weights as Hugging Face publishes them, under transformers' old or new names."""
    attention = (
        ("q_proj", "k_proj", "v_proj", "o_proj")
        if has_new_names
        else ("attention.query", "attention.key", "attention.value", "output.dense")
    )
    renames = {
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "blocks.": "encoder.layer.",
        "attn.proj": f"attention.{attention[3]}",
        "ls1.gamma": "layer_scale1.lambda1",
        "ls2.gamma": "layer_scale2.lambda1",
        "mlp.w3": "mlp.down_proj" if has_new_names else "mlp.weights_out",
    }
    named: dict[str, Tensor] = {}
    for official_name, tensor in tensors.items():
        name = official_name
        for old, new in renames.items():
            name = name.replace(old, new)
        if name.endswith("_token") or name == "register_tokens":
            named["embeddings." + name] = tensor
        elif name.startswith("norm."):
            named["layernorm." + name.removeprefix("norm.")] = tensor
        elif "attn.qkv" in name:
            for part, chunk in zip(attention, tensor.chunk(3), strict=False):
                named[name.replace("attn.qkv", f"attention.{part}")] = chunk.clone()
        elif "mlp.w12" in name and has_new_names:
            for part, chunk in zip(("gate_proj", "up_proj"), tensor.chunk(2), strict=True):
                named[name.replace("w12", part)] = chunk.clone()
        else:
            named[name.replace("w12", "weights_in")] = tensor
    return {prefix + name: tensor for name, tensor in named.items()}


def published_size(name: str) -> dict[str, Tensor]:
    """Tensors of a published model's shapes; each holds one number, so files of it stay small."""
    return {name: torch.zeros(1).expand(shape) for name, shape in KEY_LISTS[name].items()}


def saved(content: Any, path: Path) -> Path:
    """Write tensors in the format of the suffix."""
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    return path


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    """Fail unless names and values agree."""
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


class Payload:
    """Runs a command when it is unpickled: touches a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch '{self.path}'",)


def parametrize_models() -> pytest.MarkDecorator:
    """Run a test for each of the 24 published files."""
    return pytest.mark.parametrize("name", sorted(KEY_LISTS))


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of all tensors of a model, by name."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}
