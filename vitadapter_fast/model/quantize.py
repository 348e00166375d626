# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A model in; out, for inference, the same with linear layers whose weights have 8 bits."""

import copy
import logging
from typing import Any, TypeVar

import torch
from torch import nn

from .. import fused
from ..ops.int8_linear import cpu
from .deform_attn import DeformAttn
from .extractor import ConvFFN
from .vit import Attention, Mlp, SwiGLU

_log = logging.getLogger("vitadapter_fast")
_Model = TypeVar("_Model", bound=nn.Module)

# Not the projections of sampling points and their weights: they are small, and where a point lies
# matters more than what is there.
_LAYERS: dict[type[nn.Module], tuple[str, ...]] = {
    Attention: ("qkv", "proj"),
    Mlp: ("fc1", "fc2"),
    SwiGLU: ("w12", "w3"),
    DeformAttn: ("value_proj", "output_proj"),
    ConvFFN: ("fc1", "fc2"),
}


def quantize(model: _Model, *, inplace: bool = False) -> _Model:
    """Round the weights of a model's linear layers to 8 bits, for faster inference on the CPU.

    ViT-Adapters, alone or within a detector, multiply them with tokens that are rounded to 8 bits
    as they come. Norms, attention, convolutions and the projections of sampling points stay as they
    are, and so does a layer that somebody wrapped, hooked or replaced, with a warning. Processors
    without AVX512_VNNI, and GPUs, compute the same in plain PyTorch, slower than in float32.

    Args:
        model: A module with a ViT-Adapter in it, trained.
        inplace: Whether the model itself is changed; else a copy is, which shares nothing with it.

    Returns:
        The model, or the copy. Its state dict has int8 weights and their scales; to load one, build
        the model and quantize it first.

    Raises:
        ValueError: There is no such layer, or a weight is not finite.
    """
    layers, reasons = _found(model)
    if not layers:
        why = f"; {reasons[0]}" if reasons else "; give one that has, not quantized before"
        raise ValueError(
            f"quantize: {type(model).__name__} has no linear layer of a ViT-Adapter that could be "
            f"rounded{why}"
        )
    for reason in reasons:
        _log.warning("quantize: %s", reason)
    if any(layer.weight.is_cuda for layer in layers.values()):
        _log.warning("quantize: on GPUs it will be slower than float32: they have no kernel for it")
    elif (lack := cpu.processor_reason()) is not None:
        _log.warning("quantize: on the CPU it will be slower than float32, since %s", lack)
    rounded: dict[int, Any] = {}
    for path, layer in layers.items():
        try:
            with torch.inference_mode(False), torch.no_grad():
                rounded[id(layer)] = fused.Int8Linear(layer)
        except ValueError as error:
            raise ValueError(f"quantize: {path}: {error}") from None
    if not inplace:
        return copy.deepcopy(model, rounded)
    for module in list(model.modules()):
        for name, part in list(module._modules.items()):  # a layer may have several names
            if id(part) in rounded:
                setattr(module, name, rounded[id(part)])
    return model


def _found(model: nn.Module) -> tuple[dict[str, nn.Linear], list[str]]:
    """Return what can be rounded, by its path, and why other such layers cannot."""
    layers, reasons = {}, []
    for path, module in model.named_modules():
        kinds = (kind for kind in type(module).__mro__ if kind in _LAYERS)
        for name in _LAYERS.get(next(kinds, nn.Module), ()):
            layer, whole = getattr(module, name), f"{path}.{name}".removeprefix(".")
            if type(layer) is fused.Int8Linear:
                continue
            if (reason := fused.touched_reason(module, name)) is not None:
                reasons.append(f"{whole} stays as it is: {reason}")
            else:
                layers[whole] = layer
    return layers, reasons
