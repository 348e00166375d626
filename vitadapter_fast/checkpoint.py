# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A model and a checkpoint in any DINOv2 format in, the loaded model out; all fits or none is."""

import logging
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checkpoint_files import listing, read_checkpoint
from .checkpoint_formats import (
    ADAPTER_PREFIXES,
    PATCH_KERNEL,
    Format,
    Recognized,
    official_problems,
    recognize,
    rename_layer_scale,
    to_adapter,
    vit_size,
)
from .errors import CheckpointError

__all__ = [
    "LoadReport",
    "PatchMethod",
    "convert_14to16",
    "load_checkpoint",
    "read_checkpoint",
    "resample_patch_kernel",
]

PatchMethod = Literal["bilinear", "pi"]

_log = logging.getLogger("vitadapter_fast")


@dataclass(frozen=True)
class LoadReport:
    """What ``load_checkpoint`` did.

    Attributes:
        format: Format of the file.
        path: The file.
        loaded: Tensors copied into the model.
        missing: Adapter tensors that the file does not have; they keep their values.
        dropped: Names in the file that the model does not use: the cls token, registers, heads.
        resized: Patch size in the file and in the model, None where they are the same.
    """

    format: Format
    path: Path
    loaded: int
    missing: int
    dropped: tuple[str, ...]
    resized: tuple[int, int] | None


def load_checkpoint(
    model: nn.Module, path: str | os.PathLike[str], *, patch_method: PatchMethod = "bilinear"
) -> LoadReport:
    """Copy a checkpoint into a ViTAdapter; every name and shape must fit, or nothing is copied.

    A DINOv2 file (official, Hugging Face, timm, converted to patch 16) fills the ViT and leaves the
    adapter as it is. Its patch kernel is resized to the model's patch size, and three input
    channels become one by summing, or more by repeating them in turn, scaled by 3 / channels. A
    checkpoint trained with ViT-Adapter must fill the whole model, as it is.

    Args:
        model: A ViTAdapter; its tensors may have any floating dtype and be on any device.
        path: The checkpoint; see ``read_checkpoint``.
        patch_method: How to resize the patch kernel; see ``resample_patch_kernel``.

    Returns:
        What was loaded, left as it is, dropped and resized.

    Raises:
        CheckpointError: The file cannot be read or does not fit; names every tensor at fault.
        ValueError: The patch method is unknown.
    """
    _check_method(patch_method)
    path = Path(path)
    state = model.state_dict()
    if any(tensor.is_meta for tensor in state.values()):
        raise CheckpointError(
            f"{path}: the model is on the meta device and cannot hold weights; build it on a real "
            "device, or call model.to_empty(device=...) and initialize it first"
        )
    recognized = recognize(read_checkpoint(path), str(path))
    tensors, unused = to_adapter(recognized)
    resized = None
    if recognized.format != "upstream" and PATCH_KERNEL in state:
        kernel = tensors[PATCH_KERNEL]
        tensors[PATCH_KERNEL] = _fit_patch_kernel(kernel, state[PATCH_KERNEL], patch_method)
        if tensors[PATCH_KERNEL].shape[-1] != kernel.shape[-1]:
            resized = (kernel.shape[-1], tensors[PATCH_KERNEL].shape[-1])
    _check_fit(tensors, state, recognized, path)
    with torch.no_grad():
        for name, tensor in tensors.items():
            state[name].copy_(tensor)
    report = LoadReport(
        format=recognized.format,
        path=path,
        loaded=len(tensors),
        missing=len(state) - len(tensors),
        dropped=unused + recognized.ignored,
        resized=resized,
    )
    _log_report(report, recognized, patch_method)
    return report


def resample_patch_kernel(weight: Tensor, size: int, method: PatchMethod = "bilinear") -> Tensor:
    """Resize the kernel of a patch embedding.

    Args:
        weight: [C, I, p, p], floating.
        size: The new p.
        method: ``bilinear`` interpolates the kernel, as ViT-Adapter's converter does; the tokens
            come out larger by about (size / p)^2. ``pi`` keeps the tokens of a resized image, by
            the pseudo-inverse of a bicubic, antialiased resize.

    Returns:
        [C, I, size, size] in the dtype of ``weight``; ``weight`` itself where p is the size.

    Raises:
        ValueError: The weight is not 4-dimensional or the method unknown.

    Source: Beyer et al. 2022, arXiv:2212.08013, section 3.4.
    """
    _check_method(method)
    if weight.dim() != 4 or size < 1:
        raise ValueError(
            f"resample_patch_kernel: wanted a weight [C, I, p, p] and a positive size, got "
            f"{tuple(weight.shape)} and {size}"
        )
    height, width = weight.shape[2:]
    if (height, width) == (size, size):
        return weight
    if method == "bilinear":
        wide = weight if weight.dtype == torch.float64 else weight.float()
        resized = F.interpolate(wide, size=(size, size), mode="bilinear", align_corners=False)
        return resized.to(weight.dtype)
    basis = torch.eye(height * width, dtype=torch.float64, device=weight.device)
    images = F.interpolate(
        basis.view(-1, 1, height, width), size=(size, size), mode="bicubic", antialias=True
    )
    inverse = torch.linalg.pinv(images.flatten(1))  # [size * size, p * p]
    kernels: Tensor = weight.double().flatten(2) @ inverse.T
    return kernels.view(*weight.shape[:2], size, size).to(weight.dtype)


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
        CheckpointError: The tensors are no whole DINOv2 ViT with patch size 14.
        ValueError: The method is unknown.
    """
    _check_method(method)
    recognized = recognize(tensors, source)
    if recognized.format == "upstream":
        raise CheckpointError(
            f"{source}: a trained ViT-Adapter checkpoint, which needs no conversion"
        )
    official = recognized.tensors
    if recognized.format == "converted":
        raise CheckpointError(f"{source}: already converted; use it as it is")
    if official[PATCH_KERNEL].shape[2:] == (16, 16):
        raise CheckpointError(f"{source}: already has patch size 16; use it as it is")
    # The original's converter keeps what else an official file has.
    is_official = recognized.format == "official"
    problems = official_problems(official, may_have_others=is_official)
    if problems:
        raise CheckpointError(f"{source}: not a DINOv2 checkpoint: {problems}")
    if official[PATCH_KERNEL].shape[2:] != (14, 14):
        raise CheckpointError(
            f"{source}: not a DINOv2 checkpoint: wanted patch size 14, got "
            f"{tuple(official[PATCH_KERNEL].shape[2:])}"
        )
    if recognized.ignored:
        _log.info("%s: left out, not of the ViT: %s", source, listing(recognized.ignored))
    converted = {name: tensor for name, tensor in official.items() if "mask_token" not in name}
    converted[PATCH_KERNEL] = resample_patch_kernel(converted[PATCH_KERNEL], 16, method)
    return rename_layer_scale(converted)


def _check_method(method: str) -> None:
    if method not in ("bilinear", "pi"):
        raise ValueError(f"patch kernel: method must be 'bilinear' or 'pi', got {method!r}")


def _fit_patch_kernel(kernel: Tensor, wanted: Tensor, method: PatchMethod) -> Tensor:
    # A kernel of another model stays as it is, to be reported with the rest.
    if kernel.dim() != 4 or wanted.dim() != 4 or kernel.shape[0] != wanted.shape[0]:
        return kernel
    if not kernel.is_floating_point():
        return kernel
    channels = wanted.shape[1]
    if channels != 3 and kernel.shape[1] == 3:
        if channels == 1:
            kernel = kernel.sum(dim=1, keepdim=True)
        else:
            repeated = kernel.repeat(1, math.ceil(channels / 3), 1, 1)[:, :channels]
            kernel = repeated * (3 / channels)
    if wanted.shape[2] != wanted.shape[3]:
        return kernel
    return resample_patch_kernel(kernel, wanted.shape[2], method)


def _check_fit(
    tensors: Mapping[str, Tensor], state: Mapping[str, Tensor], recognized: Recognized, path: Path
) -> None:
    def is_optional(name: str) -> bool:
        if recognized.format == "upstream":
            # torch counts batches since 0.4.1; nothing here reads the count.
            return name.endswith(".num_batches_tracked")
        return name.startswith(ADAPTER_PREFIXES)

    def as_text(tensor: Tensor) -> str:
        kind = "" if tensor.is_floating_point() else f" {tensor.dtype}".replace("torch.", "")
        return f"{tuple(tensor.shape)}{kind}"

    missing = [name for name in state if name not in tensors and not is_optional(name)]
    unexpected = [name for name in tensors if name not in state]
    misshaped = [
        f"{name} is {as_text(tensor)} for {as_text(state[name])}"
        for name, tensor in tensors.items()
        if name in state
        and (
            tensor.shape != state[name].shape
            or tensor.is_floating_point() != state[name].is_floating_point()
        )
    ]
    if not (missing or unexpected or misshaped):
        return
    lines = [f"{path}: this {recognized.format} checkpoint does not fit; nothing was loaded"]
    lines += [f"  likely cause: {cause}" for cause in _likely_causes(tensors, state)]
    groups = {"missing": missing, "unexpected": unexpected, "wrong shape": misshaped}
    lines += [
        f"  {kind} ({len(names)}): {listing(names)}" for kind, names in groups.items() if names
    ]
    raise CheckpointError("\n".join(lines))


def _likely_causes(tensors: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    file, model = vit_size(tensors), vit_size(state)
    if model is None:
        return [f"the model has no {PATCH_KERNEL}; pass the ViTAdapter itself, not what holds it"]
    if file is None:
        return []
    if (file.embed_dim, file.depth) != (model.embed_dim, model.depth):
        return [f"the file is a DINOv2 {file}; the model is a {model}"]
    causes = []
    if file.ffn != model.ffn:
        causes.append(
            f"the file's feed-forward is {file.ffn!r}; build the model with ffn={file.ffn!r}"
        )
    side = math.isqrt(file.num_positions - 1) if file.num_positions > 0 else 0
    if file.num_positions != model.num_positions and side**2 == file.num_positions - 1:
        causes.append(
            f"the file has {side} x {side} positions; build the model with "
            f"pretrain_size={side * model.patch_hw[0]}"
        )
    if file.patch_hw != model.patch_hw:
        causes.append(
            f"the file's patch size is {file.patch_hw[0]}, the model's {model.patch_hw[0]}"
        )
    if tensors[PATCH_KERNEL].shape[1] != state[PATCH_KERNEL].shape[1]:
        causes.append(
            f"the file has {tensors[PATCH_KERNEL].shape[1]} input channels, the model "
            f"{state[PATCH_KERNEL].shape[1]}"
        )
    if "blocks.0.gamma1" in tensors and "blocks.0.gamma1" not in state:
        causes.append("the file has LayerScale; build the model with layer_scale=True")
    value = "interactions.0.injector.attn.value_proj.weight"
    if value in tensors and value in state and tensors[value].shape != state[value].shape:
        ratio = tensors[value].shape[0] / file.embed_dim
        causes.append(f"the file's deformable values suit deform_ratio={ratio:g}")
    return causes


def _log_report(report: LoadReport, recognized: Recognized, method: PatchMethod) -> None:
    if "register_tokens" in report.dropped:
        _log.warning(
            "%s: its register tokens are dropped: ViT-Adapter has none, so the ViT runs without "
            "what it was trained with",
            report.path,
        )
    if recognized.ignored:
        _log.info("%s: ignored, not of the backbone: %s", report.path, listing(recognized.ignored))
    if report.resized is not None:
        _log.info("%s: patch kernel resized %d -> %d (%s)", report.path, *report.resized, method)
    _log.info(
        "%s: loaded %d tensors (%s); %d of the adapter keep their values",
        report.path,
        report.loaded,
        report.format,
        report.missing,
    )
