# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A model in; out, for inference, the same with linear layers whose weights have 8 bits."""

import copy
import logging
from collections.abc import Iterator
from typing import Any, TypeVar

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
    layers = list(_found(model))
    if not layers:
        raise ValueError(
            f"quantize: {type(model).__name__} has no linear layer of a ViT-Adapter that could be "
            "rounded; give a model that has one, not quantized before"
        )
    if (reason := cpu.processor_reason()) is not None:
        _log.warning("quantize: on the CPU it will be slower than float32, since %s", reason)
    rounded: dict[int, Any] = {}
    for path, layer in layers:
        try:
            rounded[id(layer)] = fused.Int8Linear(layer)
        except ValueError as error:
            raise ValueError(f"quantize: {path}: {error}") from None
    if not inplace:
        return copy.deepcopy(model, rounded)
    for module in list(model.modules()):
        for name, part in list(module.named_children()):
            if id(part) in rounded:
                setattr(module, name, rounded[id(part)])
    return model


def _found(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Yield path and layer of all that can be rounded."""
    for path, module in model.named_modules():
        for name in _LAYERS.get(type(module), ()):
            layer = getattr(module, name)
            if type(layer) is fused.Int8Linear:
                continue
            if (reason := fused.touched_reason(module, name)) is not None:
                _log.warning("quantize: %s.%s stays as it is: %s", path, name, reason)
            else:
                yield f"{path}.{name}", layer
