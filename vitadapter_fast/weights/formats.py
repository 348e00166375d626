# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Named tensors of any DINOv2 or ViT-Adapter file in, the same under one naming out."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..model.config import PRESETS
from .files import listing

Format = Literal["official", "hf", "timm", "converted", "upstream"]

PATCH_KERNEL = "patch_embed.proj.weight"
ADAPTER_PREFIXES = (
    "level_embed", "spm.", "interactions.", "up.", "norm1.", "norm2.", "norm3.", "norm4."
)  # fmt: skip

_HF_PATCH_KERNEL = "embeddings.patch_embeddings.projection.weight"
_HF_NAMES = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.register_tokens": "register_tokens",
    "embeddings.mask_token": "mask_token",
    _HF_PATCH_KERNEL: PATCH_KERNEL,
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}
_HF_BLOCK = re.compile(r"encoder\.layer\.(\d+)\.(.+)\.(weight|bias|lambda1)")
# Hugging Face's part of a block -> (official part, place in the concatenation, parts of it).
# transformers renamed the attention and SwiGLU layers; files with either names are around.
_HF_PARTS = {
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
# FSDP training of DINOv2 wraps blocks in chunks: blocks.<chunk>.<block>.
_CHUNKED_BLOCK = re.compile(r"^blocks\.\d+\.(\d+)\.")
# What torch.compile, FSDP and activation checkpointing put into the names of what they wrap.
_WRAPPER = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_FFN_OF_SWIGLU = {f"blocks.0.mlp.{name}.weight" for name in ("w12", "w1", "fc1_g")}
_BLOCK = re.compile(r"blocks\.(\d+)\.")
_UNUSED = (
    "cls_token", "dist_token", "mask_token", "register_tokens", "norm.weight", "norm.bias"
)  # fmt: skip
# What classifiers and training put beside a ViT, at the root: timm's head, head_dist, fc_norm and
# attn_pool, DINOv2's dino_head and linear_head, transformers' classifier and pooler.
_HEAD = re.compile(r"(\w+_)?heads?(_\w+)?\.|(fc_norm|pre_logits|attn_pool|classifier|pooler)\.")
# Names of a SwiGLU's gate, value and output where the first two are not one matrix: xformers and
# DINOv3; timm. In LLaMA's w1, w3, w2 the second and third are swapped, which shapes tell.
_SWIGLU_PARTS = (("w1", "w2", "w3"), ("w1", "w3", "w2"), ("fc1_g", "fc1_x", "fc2"))
_SIZES = {(preset.embed_dim, preset.depth): name for name, preset in PRESETS.items()}


@dataclass(frozen=True)
class Recognized:
    """A checkpoint whose format is known.

    Attributes:
        format: Where the names came from.
        tensors: The backbone under official names, without the prefix it had in the file; under
            ViTAdapter's names for ``upstream``; with ``gamma1`` and ``gamma2`` for ``converted``.
        ignored: Names outside the backbone: heads, necks.
    """

    format: Format
    tensors: dict[str, Tensor]
    ignored: tuple[str, ...]


@dataclass(frozen=True)
class ViTSize:
    """The sizes that tell one ViT from another.

    Attributes:
        embed_dim: Channels of a token.
        depth: Blocks.
        patch_hw: Patch size in pixels.
        num_positions: Rows of the position table, with the cls token's.
        ffn: ``mlp`` or ``swiglu``.
    """

    embed_dim: int
    depth: int
    patch_hw: tuple[int, int]
    num_positions: int
    ffn: str

    @property
    def builder(self) -> str | None:
        """Name of the function that builds an adapter of a published model, else None."""
        size = _SIZES.get((self.embed_dim, self.depth))
        return f"vit_adapter_{size}" if size else None

    def __str__(self) -> str:
        """Return the model's name with its sizes."""
        size = _SIZES.get((self.embed_dim, self.depth))
        # As its authors write them: S, B, L and g.
        name = f"ViT-{size if size == 'g' else size.upper()}" if size else "ViT"
        return f"{name} (embed_dim {self.embed_dim}, {self.depth} blocks)"


def vit_size(tensors: Mapping[str, Tensor]) -> ViTSize | None:
    """Return the sizes of a ViT under official or ViTAdapter's names, None if it is not one."""
    kernel, positions = tensors.get(PATCH_KERNEL), tensors.get("pos_embed")
    if kernel is None or kernel.dim() != 4 or positions is None or positions.dim() != 3:
        return None
    blocks = {match[1] for name in tensors if (match := _BLOCK.match(name))}
    return ViTSize(
        embed_dim=kernel.shape[0],
        depth=len(blocks),
        patch_hw=(kernel.shape[2], kernel.shape[3]),
        num_positions=positions.shape[1],
        ffn="swiglu" if _FFN_OF_SWIGLU & tensors.keys() else "mlp",
    )


def without_wrappers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors under the names that they have where nothing wraps a part of the model."""
    named = {_WRAPPER.sub("", name): tensor for name, tensor in tensors.items()}
    return named if len(named) == len(tensors) else dict(tensors)


def find_vits(names: Iterable[object]) -> list[tuple[str, str]]:
    """Return the prefix of each ViT among names, with the name of its patch kernel behind it."""
    return [
        (name.removesuffix(kernel), kernel)
        for name in names
        for kernel in (PATCH_KERNEL, _HF_PATCH_KERNEL)
        if isinstance(name, str) and (name == kernel or name.endswith("." + kernel))
    ]


def find_heads(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names, without a prefix, that belong to heads beside a ViT."""
    return tuple(name for name in names if _HEAD.match(name))


def recognize(tensors: Mapping[str, Tensor], source: str) -> Recognized:
    """Find the backbone among named tensors and give it official names.

    Args:
        tensors: As read from a file; on any device, also meta.
        source: The file, for messages.

    Returns:
        The format, the backbone, and the names of all else. Names that a format does not have are
        kept as they are.

    Raises:
        CheckpointError: There is no ViT, or more than one.
    """
    tensors = without_wrappers(tensors)
    vits = find_vits(tensors)
    if not vits:
        raise CheckpointError(
            f"{source}: not a DINOv2 or ViT-Adapter checkpoint: no {PATCH_KERNEL} in it; it has "
            f"{listing(list(tensors)[:5])}"
        )
    if len(vits) > 1:
        raise CheckpointError(
            f"{source}: holds several ViTs ({listing(prefix + name for prefix, name in vits)}); "
            f'choose one by its prefix, as with prefer="{vits[-1][0].rstrip(".")}"'
        )
    prefix, kernel = vits[0]
    backbone = {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
    ignored = tuple(name for name in tensors if not name.startswith(prefix))
    if kernel == _HF_PATCH_KERNEL:
        return Recognized("hf", _from_hf(backbone), ignored)
    if "level_embed" in backbone or any(name.startswith("spm.") for name in backbone):
        return Recognized("upstream", backbone, ignored)
    backbone = {
        _CHUNKED_BLOCK.sub(r"blocks.\1.", name): tensor for name, tensor in backbone.items()
    }
    backbone = _with_joined_swiglu(backbone)
    if any(name.endswith((".gamma1", ".gamma2")) for name in backbone):
        return Recognized("converted", backbone, ignored)
    if "mask_token" in backbone or "register_tokens" in backbone:
        return Recognized("official", backbone, ignored)
    return Recognized("timm", _from_timm(backbone), ignored)


def official_problems(tensors: Mapping[str, Tensor], *, may_have_others: bool = True) -> str:
    """Return what keeps tensors from being a whole DINOv2 ViT in official names, or ''.

    Args:
        tensors: Under official names.
        may_have_others: Whether further names are allowed.
    """
    size = vit_size(tensors)
    if size is None:
        return f"no 4-dimensional {PATCH_KERNEL}, or no 3-dimensional pos_embed"
    wanted = _official_shapes(size, tensors)
    missing = [name for name in wanted if name not in tensors]
    misshaped = [
        f"{name} {tuple(tensors[name].shape)} for {shape}"
        for name, shape in wanted.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    problems = []
    if size.depth == 0:
        problems.append("no blocks")
    if missing:
        problems.append(f"missing: {listing(missing)}")
    others = [name for name in tensors if name not in wanted and name not in _UNUSED]
    if others and not may_have_others:
        problems.append(f"unexpected: {listing(others)}")
    if misshaped:
        problems.append(f"wrong shape: {listing(misshaped)}")
    whole = [
        f"{name} {tensors[name].dtype}".replace("torch.", "")
        for name in wanted
        if name in tensors and not tensors[name].is_floating_point()
    ]
    if whole:
        problems.append(f"no floating numbers: {listing(whole)}")
    return "; ".join(problems)


def rename_layer_scale(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with ViTAdapter's names of the LayerScale weights."""
    return {
        name.replace("ls1.gamma", "gamma1").replace("ls2.gamma", "gamma2"): tensor
        for name, tensor in tensors.items()
    }


def to_adapter(recognized: Recognized) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the backbone under ViTAdapter's names, and the names of what it does not use."""
    if recognized.format == "upstream":
        return dict(recognized.tensors), ()
    named = rename_layer_scale(recognized.tensors)
    unused = tuple(name for name in named if name in _UNUSED)
    return {name: tensor for name, tensor in named.items() if name not in unused}, unused


def _from_hf(backbone: Mapping[str, Tensor]) -> dict[str, Tensor]:
    pieces: dict[str, dict[int, str]] = {}
    counts: dict[str, int] = {}
    named: dict[str, Tensor] = {}
    for name in backbone:
        match = _HF_BLOCK.fullmatch(name)
        if name in _HF_NAMES:
            target, index, count = _HF_NAMES[name], 0, 1
        elif match and match[2] in _HF_PARTS:
            part, index, count = _HF_PARTS[match[2]]
            kind = "gamma" if match[3] == "lambda1" else match[3]
            target = f"blocks.{match[1]}.{part}.{kind}"
        else:
            target, index, count = name, 0, 1
        counts.setdefault(target, count)
        # A second tensor for a place taken stays under its own name, and is reported as unknown.
        if counts[target] != count or index in pieces.setdefault(target, {}):
            named[name] = backbone[name]
        else:
            pieces[target][index] = name
    for target, names in pieces.items():
        parts = [backbone[names[index]] for index in sorted(names)]
        can_join = len({(part.dim(), *part.shape[1:]) for part in parts}) == 1 and parts[0].dim()
        if len(parts) < counts[target] or (len(parts) > 1 and not can_join):
            named.update({name: backbone[name] for name in names.values()})
        else:
            named[target] = parts[0] if len(parts) == 1 else torch.cat(parts)
    return named


def _with_joined_swiglu(backbone: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name every SwiGLU whose gate and value are apart as DINOv2 does: ``w12`` and ``w3``."""
    pairs: dict[str, tuple[str, str]] = {}
    renamed: dict[str, str] = {}
    for block in {match[0] for name in backbone if (match := _BLOCK.match(name))}:
        for parts in _SWIGLU_PARTS:
            gate, value, out = (f"{block}mlp.{part}" for part in parts)
            if f"{block}mlp.w12.weight" in backbone or not _is_swiglu(backbone, gate, value, out):
                continue
            for kind in ("weight", "bias"):
                if f"{gate}.{kind}" in backbone:
                    pairs[f"{gate}.{kind}"] = f"{block}mlp.w12.{kind}", f"{value}.{kind}"
                renamed[f"{out}.{kind}"] = f"{block}mlp.w3.{kind}"
    values = {value for _, value in pairs.values()}
    named: dict[str, Tensor] = {}
    for name, tensor in backbone.items():
        if name in pairs:
            joined, value = pairs[name]
            named[joined] = torch.cat([tensor, backbone[value]])
        elif name not in values:
            named[renamed.get(name, name)] = tensor
    return named


def _is_swiglu(backbone: Mapping[str, Tensor], gate: str, value: str, out: str) -> bool:
    def shape(name: str) -> tuple[int, ...]:
        return tuple(backbone[name].shape) if name in backbone else ()

    hidden = shape(f"{gate}.weight")
    return (
        len(hidden) == 2
        # With as many hidden channels as others nothing tells which matrix is which.
        and hidden[0] != hidden[1]
        and hidden == shape(f"{value}.weight") == shape(f"{out}.weight")[::-1]
        and shape(f"{gate}.bias") == shape(f"{value}.bias") in ((), hidden[:1])
    )


def _from_timm(backbone: Mapping[str, Tensor]) -> dict[str, Tensor]:
    fc1, fc2 = backbone.get("blocks.0.mlp.fc1.weight"), backbone.get("blocks.0.mlp.fc2.weight")
    is_swiglu = (
        fc1 is not None
        and fc2 is not None
        and fc1.dim() == fc2.dim() == 2
        and fc1.shape[0] == 2 * fc2.shape[1]
    )
    named: dict[str, Tensor] = {}
    for name, tensor in backbone.items():
        if is_swiglu:
            name = name.replace(".mlp.fc1.", ".mlp.w12.").replace(".mlp.fc2.", ".mlp.w3.")
        if name == "reg_token":
            name = "register_tokens"
        elif name == "pos_embed" and tensor.dim() == 3 and "dist_token" in backbone:
            # DeiT has a row for its distillation token behind that of the cls token.
            tensor = torch.cat([tensor[:, :1], tensor[:, 2:]], dim=1)
        elif name == "pos_embed" and tensor.dim() == 3 and _lacks_cls_row(tensor):
            # timm adds the cls row of register models into cls_token, so zeros stand for it here.
            tensor = torch.cat([tensor.new_zeros(1, 1, tensor.shape[2]), tensor], dim=1)
        named[name] = tensor
    return named


def _lacks_cls_row(positions: Tensor) -> bool:
    batch, count, _ = positions.shape
    return batch == 1 and math.isqrt(count) ** 2 == count


def _official_shapes(size: ViTSize, tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    C = size.embed_dim
    first, last = ("w12", "w3") if size.ffn == "swiglu" else ("fc1", "fc2")
    fc2 = tensors.get(f"blocks.0.mlp.{last}.weight")
    hidden = fc2.shape[1] if fc2 is not None and fc2.dim() == 2 else 4 * C
    rows = 2 * hidden if size.ffn == "swiglu" else hidden
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, C),
        "pos_embed": (1, size.num_positions, C),
        PATCH_KERNEL: (C, tensors[PATCH_KERNEL].shape[1], *size.patch_hw),
        "patch_embed.proj.bias": (C,),
        "norm.weight": (C,),
        "norm.bias": (C,),
    }
    block: dict[str, tuple[int, ...]] = {
        "norm1.weight": (C,),
        "norm1.bias": (C,),
        "attn.qkv.weight": (3 * C, C),
        "attn.qkv.bias": (3 * C,),
        "attn.proj.weight": (C, C),
        "attn.proj.bias": (C,),
        "ls1.gamma": (C,),
        "norm2.weight": (C,),
        "norm2.bias": (C,),
        f"mlp.{first}.weight": (rows, C),
        f"mlp.{first}.bias": (rows,),
        f"mlp.{last}.weight": (C, hidden),
        f"mlp.{last}.bias": (C,),
        "ls2.gamma": (C,),
    }
    for index in range(size.depth):
        shapes.update({f"blocks.{index}.{name}": shape for name, shape in block.items()})
    return shapes
