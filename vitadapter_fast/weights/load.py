# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A model and a checkpoint in any known format in, the loaded model out; all fits or none is."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from .choice import Weights
from .dinov3 import Settled, settle
from .download import located
from .files import listing
from .fit import check_fit
from .formats import Format, Recognized, find_heads, recognize, to_adapter, without_wrappers
from .joined import Weight, copy_into, whole
from .patch_kernel import PatchMethod, check_method, fit_patch_kernel
from .read import read_weights
from .size import PATCH_KERNEL

_log = logging.getLogger("vitadapter_fast")


@dataclass(frozen=True)
class LoadReport:
    """What ``load_checkpoint`` did.

    Attributes:
        format: Format of the file.
        path: The file; of a folder the one in it that was read, of a name or URL the download.
        loaded: Tensors copied into the model.
        missing: Tensors of the adapter, or of the ViT if the file is an adapter alone, that the
            file does not have; they keep their values.
        dropped: Names in the file that the model does not use: the cls token, registers, heads, a
            bias of zeros, counts of batches where a norm is fixed. Bias masks are applied and
            periods compared, so they are none of these.
        resized: Patch size in the file and in the model, None where they are the same.
        taken: Where in the file the weights lay, such as ``state_dict``; "" if at its root.
        left: Where other tensors lie: averaged weights, a student, an optimizer; or other files
            of the folder with the same weights.
        rope_periods: How the model rounds its rotary periods: ``bfloat16``, as DINOv3's own files
            have them, or ``exact``, as transformers and timm compute them; None without such.
    """

    format: Format
    path: Path
    loaded: int
    missing: int
    dropped: tuple[str, ...]
    resized: tuple[int, int] | None
    taken: str
    left: tuple[str, ...]
    rope_periods: str | None = None


def load_checkpoint(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    patch_method: PatchMethod = "bilinear",
    prefer: str | None = None,
) -> LoadReport:
    """Copy a checkpoint into a ViTAdapter; every name and shape must fit, or nothing is copied.

    A DINOv2 file (official, Hugging Face, timm, converted to patch 16) fills the ViT and leaves the
    adapter as it is; its registers stay where the model has some. Its patch kernel is resized to
    the model's patch size, and three input channels become one by summing, or more by repeating
    them in turn, scaled by 3 / channels. A checkpoint trained with ViT-Adapter must fill the whole
    model, as it is; one of a segmentor of the original wants ``vit_features="stages"``, one of a
    detector ``"last"``.

    A DINOv3 file (official, Hugging Face, timm) fills the ViT too: its bias of queries, keys and
    values is taken times its mask, and is zero where the file has none; its periods must be those
    of DINOv3. A file of DINOv3's own adapter must fill the whole model; one that has no ViT, as its
    segmentors are published, fills the adapter and leaves the ViT as it is.

    Args:
        model: A ViTAdapter; its tensors may have any floating dtype and be on any device.
        path: The checkpoint, see ``read_checkpoint``; or what is downloaded once into torch.hub's
            folder of checkpoints: a name such as ``dinov2_vits14_reg``, or an http(s) address; or
            into the cache of huggingface_hub: a name such as ``dinov3_vits16`` or
            ``timm/vit_small_patch16_dinov3.lvd1689m``.
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
    _check_model(model, path)
    return _load(model, read_weights(located(path), prefer=prefer), patch_method)


def load_tensors(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> LoadReport:
    """Do what ``load_checkpoint`` does, of a file that somebody else has read.

    Args:
        model: As for ``load_checkpoint``.
        tensors: What was in the file.
        source: What messages call it.
    """
    _check_model(model, source)
    weights = Weights(Path(source), dict(tensors), taken="", left=())
    return _load(model, weights, "bilinear")


def _check_model(model: nn.Module, source: str | os.PathLike[str]) -> None:
    """Raise CheckpointError unless weights can be copied into a model."""
    state = without_wrappers(model.state_dict())
    if any(tensor.is_meta for tensor in state.values()):
        raise CheckpointError(
            f"{source}: the model is on the meta device and cannot hold weights; build it on a "
            "real device, or call model.to_empty(device=...) and initialize it first"
        )
    kinds = {type(tensor) for tensor in state.values()} - {Tensor}
    if kinds:
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise CheckpointError(
            f"{source}: the model has weights of another kind, {names}; load the checkpoint before "
            "it is sharded or quantized"
        )


def _load(model: nn.Module, weights: Weights, patch_method: PatchMethod) -> LoadReport:
    state = without_wrappers(model.state_dict())
    if _is_rounded(state) and not _is_rounded(weights.tensors):
        raise CheckpointError(
            f"{weights.path}: the model was quantized, and the file was not; load it before "
            "vitadapter_fast.quantize"
        )
    if _is_rounded(weights.tensors) and not _is_rounded(state):
        raise CheckpointError(
            f"{weights.path}: it is of a quantized model; call vitadapter_fast.quantize on the "
            "model before it is loaded"
        )
    recognized = recognize(weights.tensors, str(weights.path))
    fitted = fit(recognized, model, weights.path, patch_method)
    with torch.no_grad():
        for name, tensor in fitted.tensors.items():
            copy_into(state[name], tensor)
    report = LoadReport(
        format=recognized.format,
        path=weights.path,
        loaded=len(fitted.tensors),
        missing=len(state) - len(fitted.tensors),
        dropped=fitted.unused + fitted.ignored,
        resized=fitted.resized,
        taken=weights.taken,
        left=weights.left,
        rope_periods=_rope_periods(model),
    )
    _log_report(report, fitted, patch_method)
    return report


def _is_rounded(tensors: Mapping[str, object]) -> bool:
    """Return whether they are of a quantized model: int8, as ``ops.int8_weight`` lays them out."""
    found = (each for each in tensors.values() if isinstance(each, Tensor))
    return any(each.dtype == torch.int8 and each.dim() == 4 for each in found)


@dataclass(frozen=True)
class Fitted:
    """What of a file a model takes.

    Attributes:
        tensors: Under the model's names and in its shapes; not yet in its dtypes.
        unused: Names of a ViT that the model has no place for.
        ignored: Names of heads, necks and the like, and counts of norms that count nothing.
        resized: Patch size in the file and in the model, None where they are the same.
        settled: What was found on the way, of a DINOv3 ViT.
    """

    tensors: dict[str, Weight]
    unused: tuple[str, ...]
    ignored: tuple[str, ...]
    resized: tuple[int, int] | None
    settled: Settled


def fit(recognized: Recognized, model: nn.Module, path: Path, method: PatchMethod) -> Fitted:
    """Find the place of every tensor in a model, which may be on the meta device.

    Args:
        recognized: The file's tensors; any may be on the meta device too.
        model: A ViTAdapter.
        path: The file, for messages.
        method: See ``resample_patch_kernel``.

    Raises:
        CheckpointError: Something has none; names every tensor at fault.
    """
    state = without_wrappers(model.state_dict())
    tensors, unused = to_adapter(recognized, state)
    # A fixed norm, as detectors put in the place of others, counts no batches.
    counts = [name for name in tensors if name.endswith(".num_batches_tracked")]
    ignored = tuple(name for name in (*find_heads(tensors), *counts) if name not in state)
    tensors = {name: tensor for name, tensor in tensors.items() if name not in ignored}
    settled = settle(tensors, state) if recognized.is_dinov3 else Settled(tensors)
    tensors = settled.tensors
    resized = None
    is_vit_alone = recognized.format not in ("upstream", "dinov3_adapter", "adapter")
    if is_vit_alone and PATCH_KERNEL in state:
        kernel = whole(tensors[PATCH_KERNEL])
        fitting = fit_patch_kernel(kernel, state[PATCH_KERNEL], method)
        tensors[PATCH_KERNEL] = fitting
        if fitting.shape[-1] != kernel.shape[-1]:
            resized = (kernel.shape[-1], fitting.shape[-1])
    check_fit(settled, model, recognized, path)
    return Fitted(tensors, unused + settled.dropped, ignored + recognized.ignored, resized, settled)


def _rope_periods(model: nn.Module) -> str | None:
    periods = getattr(getattr(model, "rope", None), "periods", None)
    return periods if isinstance(periods, str) else None


def _log_report(report: LoadReport, fitted: Fitted, method: PatchMethod) -> None:
    path = report.path
    if "register_tokens" in report.dropped:
        _log.warning(
            "%s: its register tokens are dropped: the model has none, so the ViT runs without what "
            "it was trained with; num_register_tokens=4, window_attn=False keeps them",
            path,
        )
    if fitted.settled.periods == "exact" and report.rope_periods == "bfloat16":
        _log.warning(
            "%s: its rotary periods are exact, and the model rounds them as DINOv3's own weights "
            'want it; rope_periods="exact" computes what the file was saved from',
            path,
        )
    if fitted.settled.has_unset_masks:
        _log.warning("%s: its bias masks are NaN; took them for those that mask the keys", path)
    if fitted.ignored:
        _log.info("%s: ignored, not of the backbone: %s", path, listing(fitted.ignored))
    if report.resized is not None:
        _log.info("%s: patch kernel resized %d -> %d (%s)", path, *report.resized, method)
    _log.info(
        "%s: loaded %d tensors (%s); %d of the %s keep their values",
        path,
        report.loaded,
        report.format,
        report.missing,
        "ViT" if report.format == "adapter" else "adapter",
    )
