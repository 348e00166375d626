# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A model and a checkpoint in any DINOv2 format in, the loaded model out; all fits or none is."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from .download import located
from .files import listing
from .fit import check_fit
from .formats import PATCH_KERNEL, Format, find_heads, recognize, to_adapter, without_wrappers
from .patch_kernel import PatchMethod, check_method, fit_patch_kernel
from .read import read_weights

_log = logging.getLogger("vitadapter_fast")


@dataclass(frozen=True)
class LoadReport:
    """What ``load_checkpoint`` did.

    Attributes:
        format: Format of the file.
        path: The file; of a folder the one in it that was read, of a name or URL the download.
        loaded: Tensors copied into the model.
        missing: Adapter tensors that the file does not have; they keep their values.
        dropped: Names in the file that the model does not use: the cls token, registers, heads.
        resized: Patch size in the file and in the model, None where they are the same.
        taken: Where in the file the weights lay, such as ``state_dict``; "" if at its root.
        left: Where other tensors lie: averaged weights, a student, an optimizer; or other files
            of the folder with the same weights.
    """

    format: Format
    path: Path
    loaded: int
    missing: int
    dropped: tuple[str, ...]
    resized: tuple[int, int] | None
    taken: str
    left: tuple[str, ...]


def load_checkpoint(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    patch_method: PatchMethod = "bilinear",
    prefer: str | None = None,
) -> LoadReport:
    """Copy a checkpoint into a ViTAdapter; every name and shape must fit, or nothing is copied.

    A DINOv2 file (official, Hugging Face, timm, converted to patch 16) fills the ViT and leaves the
    adapter as it is. Its patch kernel is resized to the model's patch size, and three input
    channels become one by summing, or more by repeating them in turn, scaled by 3 / channels. A
    checkpoint trained with ViT-Adapter must fill the whole model, as it is; one of a segmentor of
    the original wants ``vit_features="stages"``, one of a detector ``"last"``.

    Args:
        model: A ViTAdapter; its tensors may have any floating dtype and be on any device.
        path: The checkpoint, see ``read_checkpoint``; or what is downloaded once into torch.hub's
            folder of checkpoints: a name such as ``dinov2_vits14_reg``, or an http(s) address.
        patch_method: How to resize the patch kernel; see ``resample_patch_kernel``.
        prefer: Which of several sets of weights to take; see ``read_checkpoint``.

    Returns:
        What was loaded, left as it is, dropped and resized.

    Raises:
        CheckpointError: The file cannot be fetched, read or does not fit; names every tensor at
            fault.
        ValueError: The patch method is unknown.
    """
    check_method(patch_method)
    state = without_wrappers(model.state_dict())
    if any(tensor.is_meta for tensor in state.values()):
        raise CheckpointError(
            f"{path}: the model is on the meta device and cannot hold weights; build it on a real "
            "device, or call model.to_empty(device=...) and initialize it first"
        )
    kinds = {type(tensor) for tensor in state.values()} - {Tensor}
    if kinds:
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise CheckpointError(
            f"{path}: the model has weights of another kind, {names}; load the checkpoint before "
            "it is sharded or quantized"
        )
    weights = read_weights(located(path), prefer=prefer)
    recognized = recognize(weights.tensors, str(weights.path))
    tensors, unused = to_adapter(recognized)
    heads = tuple(name for name in find_heads(tensors) if name not in state)
    tensors = {name: tensor for name, tensor in tensors.items() if name not in heads}
    resized = None
    if recognized.format != "upstream" and PATCH_KERNEL in state:
        kernel = tensors[PATCH_KERNEL]
        tensors[PATCH_KERNEL] = fit_patch_kernel(kernel, state[PATCH_KERNEL], patch_method)
        if tensors[PATCH_KERNEL].shape[-1] != kernel.shape[-1]:
            resized = (kernel.shape[-1], tensors[PATCH_KERNEL].shape[-1])
    check_fit(tensors, model, recognized, weights.path)
    with torch.no_grad():
        for name, tensor in tensors.items():
            state[name].copy_(tensor)
    report = LoadReport(
        format=recognized.format,
        path=weights.path,
        loaded=len(tensors),
        missing=len(state) - len(tensors),
        dropped=unused + heads + recognized.ignored,
        resized=resized,
        taken=weights.taken,
        left=weights.left,
    )
    _log_report(report, heads + recognized.ignored, patch_method)
    return report


def _log_report(report: LoadReport, ignored: tuple[str, ...], method: PatchMethod) -> None:
    if "register_tokens" in report.dropped:
        _log.warning(
            "%s: its register tokens are dropped: ViT-Adapter has none, so the ViT runs without "
            "what it was trained with",
            report.path,
        )
    if ignored:
        _log.info("%s: ignored, not of the backbone: %s", report.path, listing(ignored))
    if report.resized is not None:
        _log.info("%s: patch kernel resized %d -> %d (%s)", report.path, *report.resized, method)
    _log.info(
        "%s: loaded %d tensors (%s); %d of the adapter keep their values",
        report.path,
        report.loaded,
        report.format,
        report.missing,
    )
