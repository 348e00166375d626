# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Tensors of a DINOv3 ViT under any names in, what a ViTAdapter takes of them out.

Three things beside the weights need thought: official files mask the bias of queries, keys and
values; files may lack that bias, or have one of zeros; and some have the rotary periods.
"""

import re
from collections.abc import Collection, Container, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .joined import Weight, joined, whole

PERIODS = "rope_embed.periods"
BIAS = ".attn.qkv.bias"
BIAS_MASK = ".attn.qkv.bias_mask"
# For whoever writes a file with weights that may be DINOv3's.
LICENSE_NOTICE = (
    "weights that come from DINOv3 stay under the DINOv3 License, also converted or exported: who "
    "hands the file on has to hand on a copy of that license with it"
)

_GATE_OR_VALUE = re.compile(r"(blocks\.\d+\.mlp)\.w([12])\.(weight|bias)")
_TIMM_GATE_OR_VALUE = re.compile(r"(blocks\.\d+\.mlp)\.fc1_([gx])\.(weight|bias)")
_TIMM_BIAS = re.compile(r"(blocks\.\d+\.attn)\.([qkv])_bias")
_BASE = 100.0


@dataclass(frozen=True)
class Settled:
    """What a model takes of a DINOv3 ViT.

    Attributes:
        tensors: Under ViTAdapter's names, without masks and periods.
        dropped: Names of biases left out, which are zero and which the model does not have.
        problems: What is wrong with the values, a sentence each.
        periods: "bfloat16" or "exact", as the file's are; None if it has none.
        head_channels: Of the attention, as the number of periods tells; None if it does not.
        has_unset_masks: Masks were NaN.
    """

    tensors: dict[str, Weight]
    dropped: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    periods: str | None = None
    head_channels: int | None = None
    has_unset_masks: bool = False


def dinov3_format(names: Collection[str]) -> Literal["official", "timm"] | None:
    """Return whose names a ViT's are if it is a DINOv3 ViT, else None.

    Args:
        names: Without a prefix; its patch kernel's is ``patch_embed.proj.weight``.
    """
    if "pos_embed" in names:
        return None
    if "storage_tokens" in names or any(name.startswith("rope_embed.") for name in names):
        return "official"
    is_timm = "reg_token" in names and any(name.endswith(".gamma_1") for name in names)
    return "timm" if is_timm else None


def from_official(backbone: Mapping[str, Tensor]) -> dict[str, Weight]:
    """Return an official DINOv3 ViT under ViTAdapter's names."""

    def place(name: str) -> tuple[str, int, int]:
        if match := _GATE_OR_VALUE.fullmatch(name):
            return f"{match[1]}.w12.{match[3]}", int(match[2]) - 1, 2
        return "register_tokens" if name == "storage_tokens" else name, 0, 1

    return joined(backbone, place)


def from_timm(backbone: Mapping[str, Tensor]) -> dict[str, Weight]:
    """Return a DINOv3 ViT of timm under ViTAdapter's names."""
    is_gated = any(".mlp.fc1_g." in name for name in backbone)

    def place(name: str) -> tuple[str, int, int]:
        if match := _TIMM_GATE_OR_VALUE.fullmatch(name):
            return f"{match[1]}.w12.{match[3]}", "gx".index(match[2]), 2
        if match := _TIMM_BIAS.fullmatch(name):
            return f"{match[1]}.qkv.bias", "qkv".index(match[2]), 3
        if name == "reg_token":
            return "register_tokens", 0, 1
        if is_gated:
            name = name.replace(".mlp.fc2.", ".mlp.w3.")
        return name.replace(".gamma_1", ".gamma1").replace(".gamma_2", ".gamma2"), 0, 1

    return joined(backbone, place, fills_keys=True)


def settle(tensors: Mapping[str, Weight], state: Container[str]) -> Settled:
    """Apply masks, check periods, and let the bias be there where the model has one.

    Args:
        tensors: Under ViTAdapter's names. Of those without values, on the meta device, only names
            and shapes count.
        state: Names that the model has.
    """
    tensors = dict(tensors)
    problems = []
    head_channels = policy = None
    if (periods := tensors.pop(PERIODS, None)) is not None:
        head_channels = 4 * periods.shape[0] if periods.dim() == 1 and periods.shape[0] else None
        policy, problem = _policy(whole(periods))
        problems += [problem] if problem else []
    biases = [name for name in tensors if name.endswith(BIAS)]
    unset = [
        name for name in biases if _has_values(tensors[name]) and not _is_finite(tensors[name])
    ]
    if unset:
        problems.append(
            f"NaN or infinite: {unset[0]}"
            + (f" and {len(unset) - 1} more of its kind" if len(unset) > 1 else "")
            + "; the file is of a model that was never initialized, or has diverged"
        )
    masked, has_unset_masks = _masked(tensors, biases)
    tensors.update(masked)
    for name in masked:
        del tensors[f"{name}_mask"]
    if not biases:
        tensors.update(_zero_biases(tensors, state))
    dropped = [name for name in biases if name not in state and _is_zero(tensors[name])]
    for name in dropped:
        del tensors[name]
    return Settled(tensors, tuple(dropped), tuple(problems), policy, head_channels, has_unset_masks)


def exact_periods(count: int) -> Tensor:
    """Return the periods of rotary positions with ``count`` for each axis, [count], float64."""
    return _BASE ** (torch.arange(count, dtype=torch.float64) / count)


def _policy(periods: Tensor) -> tuple[str | None, str | None]:
    """Name how a file's periods are rounded, or say what is wrong with them."""
    if not _has_values(periods):
        return None, None
    if periods.dim() != 1 or not len(periods) or not periods.is_floating_point():
        return None, f"{PERIODS} is {tuple(periods.shape)} {periods.dtype}, wanted a row of numbers"
    exact = exact_periods(len(periods))
    found = periods.double()
    if torch.equal(found, exact.to(torch.bfloat16).double()):
        return "bfloat16", None
    # From powers in float32; files in float16 have them rounded to that.
    precision = 2 * max(torch.finfo(periods.dtype).eps, torch.finfo(torch.float32).eps)
    if torch.allclose(found, exact, rtol=precision, atol=0.0):
        return "exact", None
    values = ", ".join(f"{period:.6g}" for period in found[:4].tolist())
    return None, (
        f"{PERIODS} begins with {values}, wanted those of DINOv3, {_BASE:g} ** "
        f"(k / {len(periods)}): ViTAdapter has no others"
    )


def _masked(
    tensors: Mapping[str, Weight], biases: Collection[str]
) -> tuple[dict[str, Weight], bool]:
    """Return biases times their masks, and whether any mask was NaN."""
    masked: dict[str, Weight] = {}
    is_unset = False
    for name in biases:
        bias, mask = tensors[name], tensors.get(f"{name}_mask")
        # One of another shape stays, to be reported.
        if mask is None or mask.shape != bias.shape or bias.dim() != 1 or bias.shape[0] % 3:
            continue
        masked[name] = bias
        if not (_has_values(bias) and _has_values(mask)):
            continue
        factors = whole(mask)
        unset = factors.isnan()
        if unset.any():
            # What its model's initialization would have made of it: keys have no bias.
            is_unset = True
            usual = torch.ones_like(factors)
            usual.view(3, -1)[1] = 0
            factors = torch.where(unset, usual, factors)
        masked[name] = (whole(bias) * factors).masked_fill(factors == 0, 0)
    return masked, is_unset


def _zero_biases(tensors: Mapping[str, Weight], state: Container[str]) -> dict[str, Weight]:
    """Return the biases that a model has and a file without any has not."""
    zeros: dict[str, Weight] = {}
    for name, weight in tensors.items():
        bias = f"{name.removesuffix('.weight')}.bias"
        if name.endswith(".attn.qkv.weight") and bias in state and weight.dim() == 2:
            zeros[bias] = torch.zeros(weight.shape[0], dtype=torch.float32)
    return zeros


def _has_values(weight: Weight) -> bool:
    return not weight.is_meta


def _is_finite(weight: Weight) -> bool:
    return not _has_values(weight) or bool(whole(weight).isfinite().all())


def _is_zero(weight: Weight) -> bool:
    return _has_values(weight) and not whole(weight).any()
