# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Named tensors of any DINOv2 or ViT-Adapter file in, the same under one naming out."""

import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..errors import CheckpointError
from .dinov3 import dinov3_format, from_official, from_timm
from .files import listing
from .hugging_face import DINOV2_KERNEL, DINOV3_KERNEL, from_hugging_face
from .joined import Joined, Weight
from .size import BLOCK, PATCH_KERNEL, ViTSize, vit_size

Format = Literal["official", "hf", "timm", "converted", "upstream", "dinov3_adapter", "adapter"]

ADAPTER_PREFIXES = (
    "level_embed", "spm.", "interactions.", "up.", "norm1.", "norm2.", "norm3.", "norm4."
)  # fmt: skip

# FSDP training of DINOv2 wraps blocks in chunks: blocks.<chunk>.<block>.
_CHUNKED_BLOCK = re.compile(r"^blocks\.\d+\.(\d+)\.")
# What torch.compile, FSDP and activation checkpointing put into the names of what they wrap.
_WRAPPER = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# What models may leave out, and where they do not, what they have under the same name.
_UNUSED = (
    "cls_token", "dist_token", "mask_token", "register_tokens", "norm.weight", "norm.bias",
    "local_cls_norm.weight", "local_cls_norm.bias",
)  # fmt: skip
# What classifiers and training put beside a ViT, at the root: timm's head, head_dist, fc_norm and
# attn_pool, DINOv2's dino_head and linear_head, transformers' classifier and pooler, EUPE's
# projectors.
_HEAD = re.compile(
    r"(\w+_)?heads?(_\w+)?\.|(fc_norm|pre_logits|attn_pool|classifier|pooler|projectors)\."
)
# Names of a SwiGLU's gate, value and output where the first two are not one matrix: xformers and
# DINOv3; timm. In LLaMA's w1, w3, w2 the second and third are swapped, which shapes tell.
_SWIGLU_PARTS = (("w1", "w2", "w3"), ("w1", "w3", "w2"), ("fc1_g", "fc1_x", "fc2"))


@dataclass(frozen=True)
class Recognized:
    """A checkpoint whose format is known.

    Attributes:
        format: Where the names came from; ``dinov3_adapter`` is an adapter with the trunk under
            ``backbone.``, ``adapter`` one without a ViT.
        tensors: The backbone under official names, without the prefix it had in the file; under
            ViTAdapter's names for ``upstream``; with ``gamma1`` and ``gamma2`` for ``converted``.
        ignored: Names outside the backbone: heads, necks.
        is_dinov3: The ViT is DINOv3's; its masks and periods are among the tensors.
    """

    format: Format
    tensors: dict[str, Weight]
    ignored: tuple[str, ...]
    is_dinov3: bool = False


def without_wrappers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors under the names that they have where nothing wraps a part of the model."""
    named = {_WRAPPER.sub("", name): tensor for name, tensor in tensors.items()}
    return named if len(named) == len(tensors) else dict(tensors)


def find_vits(names: Iterable[object]) -> list[tuple[str, str]]:
    """Return the prefix of each ViT among names, with the name of its patch kernel behind it."""
    return [
        (name.removesuffix(kernel), kernel)
        for name in names
        for kernel in (PATCH_KERNEL, DINOV2_KERNEL, DINOV3_KERNEL)
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
        return _adapter_alone(tensors, source)
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
    if kernel != PATCH_KERNEL:
        is_dinov3 = kernel == DINOV3_KERNEL
        vit = Recognized("hf", from_hugging_face(backbone, is_dinov3=is_dinov3), ignored, is_dinov3)
    elif "level_embed" in backbone or any(name.startswith("spm.") for name in backbone):
        return Recognized("upstream", dict(backbone), ignored, _has_own_names_of_dinov3(backbone))
    else:
        vit = _recognize_vit(backbone, ignored)
    return _with_adapter(vit, tensors, prefix) if vit.is_dinov3 else vit


def _recognize_vit(backbone: Mapping[str, Tensor], ignored: tuple[str, ...]) -> Recognized:
    backbone = {
        _CHUNKED_BLOCK.sub(r"blocks.\1.", name): tensor for name, tensor in backbone.items()
    }
    dinov3 = dinov3_format(backbone)
    if dinov3 == "official":
        return Recognized(dinov3, from_official(backbone), ignored, is_dinov3=True)
    if dinov3 == "timm":
        return Recognized(dinov3, from_timm(backbone), ignored, is_dinov3=True)
    if any(name.endswith((".gamma1", ".gamma2")) for name in backbone):
        is_dinov3 = _has_own_names_of_dinov3(backbone)
        return Recognized("converted", _with_joined_swiglu(backbone), ignored, is_dinov3)
    if "mask_token" in backbone or "register_tokens" in backbone:
        return Recognized("official", _with_joined_swiglu(backbone), ignored)
    return Recognized("timm", _with_joined_swiglu(_from_timm(backbone)), ignored)


def _has_own_names_of_dinov3(backbone: Collection[str]) -> bool:
    """Return whether names that are ViTAdapter's have no table, and are not just without theirs."""
    return "pos_embed" not in backbone and "cls_token" in backbone


def _with_adapter(vit: Recognized, tensors: Mapping[str, Tensor], prefix: str) -> Recognized:
    """Add the adapter that a file has beside its ViT, as DINOv3's own has ``backbone.``."""
    outer = prefix.removesuffix("backbone.")
    if outer == prefix or outer not in _adapters(tensors):
        return vit
    adapter = {
        name.removeprefix(outer): tensor
        for name, tensor in tensors.items()
        if name.startswith(outer) and name.removeprefix(outer).startswith(ADAPTER_PREFIXES)
    }
    of_adapter = {outer + name for name in adapter}
    ignored = tuple(name for name in vit.ignored if name not in of_adapter)
    return Recognized("dinov3_adapter", {**adapter, **vit.tensors}, ignored, is_dinov3=True)


def _adapter_alone(tensors: Mapping[str, Tensor], source: str) -> Recognized:
    """Recognize an adapter without its ViT, as DINOv3's segmentors are published."""
    prefixes = _adapters(tensors)
    if not prefixes:
        raise CheckpointError(
            f"{source}: not a DINOv2, DINOv3 or ViT-Adapter checkpoint: no {PATCH_KERNEL} in it; "
            f"it has {listing(list(tensors)[:5])}"
        )
    if len(prefixes) > 1:
        raise CheckpointError(
            f"{source}: holds several adapters without a ViT "
            f"({listing(f'{prefix}level_embed' for prefix in prefixes)}); save one of them alone"
        )
    prefix = prefixes[0]
    adapter: dict[str, Weight] = {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
    return Recognized(
        "adapter", adapter, tuple(name for name in tensors if not name.startswith(prefix))
    )


def _adapters(names: Iterable[str]) -> list[str]:
    """Return the prefixes of adapters: of what is called so in them, heads have a part too."""
    names = list(names)
    prefixes = [
        name.removesuffix("level_embed")
        for name in names
        if name == "level_embed" or name.endswith(".level_embed")
    ]
    return [
        prefix for prefix in prefixes if any(name.startswith(f"{prefix}spm.") for name in names)
    ]


def official_problems(tensors: Mapping[str, Weight], *, may_have_others: bool = True) -> str:
    """Return what keeps tensors from being a whole DINOv2 ViT in official names, or ''.

    Args:
        tensors: Under official names.
        may_have_others: Whether further names are allowed.
    """
    size = vit_size(tensors)
    if size is None or size.is_rotary:
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


def rename_layer_scale(tensors: Mapping[str, Weight]) -> dict[str, Weight]:
    """Return the tensors with ViTAdapter's names of the LayerScale weights."""
    return {
        name.replace("ls1.gamma", "gamma1").replace("ls2.gamma", "gamma2"): tensor
        for name, tensor in tensors.items()
    }


def to_adapter(
    recognized: Recognized, wanted: Collection[str] = ()
) -> tuple[dict[str, Weight], tuple[str, ...]]:
    """Return the backbone under ViTAdapter's names, and the names of what it does not use.

    Args:
        recognized: The backbone.
        wanted: Names that the model has.
    """
    if recognized.format in ("upstream", "adapter"):
        return dict(recognized.tensors), ()
    named = rename_layer_scale(recognized.tensors)
    unused = set(_UNUSED) - set(wanted)
    if "cls_token" in wanted:
        # It has prefix tokens, so that others than its own make another model.
        unused.discard("register_tokens")
    if recognized.format == "dinov3_adapter":
        unused -= {"norm.weight", "norm.bias"}
    kept = {name: tensor for name, tensor in named.items() if name not in unused}
    return kept, tuple(name for name in named if name in unused)


def _with_joined_swiglu(backbone: Mapping[str, Tensor]) -> dict[str, Weight]:
    """Name every SwiGLU whose gate and value are apart as DINOv2 does: ``w12`` and ``w3``."""
    pairs: dict[str, tuple[str, str]] = {}
    renamed: dict[str, str] = {}
    for block in {match[0] for name in backbone if (match := BLOCK.match(name))}:
        for parts in _SWIGLU_PARTS:
            gate, value, out = (f"{block}mlp.{part}" for part in parts)
            if f"{block}mlp.w12.weight" in backbone or not _is_swiglu(backbone, gate, value, out):
                continue
            for kind in ("weight", "bias"):
                if f"{gate}.{kind}" in backbone:
                    pairs[f"{gate}.{kind}"] = f"{block}mlp.w12.{kind}", f"{value}.{kind}"
                renamed[f"{out}.{kind}"] = f"{block}mlp.w3.{kind}"
    values = {value for _, value in pairs.values()}
    named: dict[str, Weight] = {}
    for name, tensor in backbone.items():
        if name in pairs:
            joined, value = pairs[name]
            named[joined] = Joined([tensor, backbone[value]])
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


def _official_shapes(size: ViTSize, tensors: Mapping[str, Weight]) -> dict[str, tuple[int, ...]]:
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
