# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The spatial prior, with constant norms in the convolutions, and its stem in bands on the CPU."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..native import gemm, half_conv, tensors
from . import bands
from ._choice import NORMS, touched_reason
from .form import product_dtypes
from .half_convolution import convolve, has_halves
from .maps import map_to_tokens
from .norm import folded, normalize
from .product import project


def unsupported_reason(spm: Any, image: Tensor) -> str | None:
    """Return why a ``SpatialPrior`` calls its layers for this image, or None."""
    if (reason := touched_reason(spm, "stem", "conv2", "conv3", "conv4")) is not None:
        return reason
    parts = (spm.stem, spm.conv2, spm.conv3, spm.conv4)
    layers = [layer for part in parts for layer in part]
    pool = layers.pop(len(spm.stem) - 1)
    if not (
        type(pool) is nn.MaxPool2d and (pool.kernel_size, pool.stride, pool.padding) == (3, 2, 1)
    ):
        return "its stem does not end in the original's max pool"
    for conv, norm, relu in zip(layers[::3], layers[1::3], layers[2::3], strict=True):
        if type(conv) is not nn.Conv2d or type(norm) not in NORMS or type(relu) is not nn.ReLU:
            return "its layers are not convolutions, each with a norm and ReLU"
        if (
            conv.kernel_size != (3, 3)
            or conv.padding != (1, 1)
            or conv.dilation != (1, 1)
            or conv.groups != 1
            or conv.bias is not None
            or conv.padding_mode != "zeros"
        ):
            return "one of its convolutions is not a plain one of 3 x 3 pixels without bias"
    return None


def forward(spm: Any, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return what a ``SpatialPrior`` makes of an image that is channels last."""
    dtypes = product_dtypes(image, spm.stem[0].weight)
    low, wide = dtypes or (image.dtype, image.dtype)
    is_half = dtypes is not None and low in gemm.LOW and gemm.is_half(image, low)
    halves = low if is_half else None
    if torch.is_grad_enabled():
        wide = low  # training keeps the maps
    with nullcontext() if wide is low else tensors.without_autocast():
        at_4 = conv_norm_relu(image if wide is low else image.to(wide), spm.stem, halves)
        at_8 = conv_norm_relu(at_4, spm.conv2, halves)
        at_16 = conv_norm_relu(at_8, spm.conv3, halves)
        at_32 = conv_norm_relu(at_16, spm.conv4, halves)
    levels = [at_4, at_8, at_16, at_32]
    if wide is not low:
        levels = [level.to(low) for level in levels]
    largest = project(levels[0], spm, "fc1", halves)
    if is_half:
        others = zip(levels[1:], ("fc2", "fc3", "fc4"), strict=True)
        maps = [project(level, spm, name, halves) for level, name in others]
    else:
        maps = [spm.fc2(levels[1]), spm.fc3(levels[2]), spm.fc4(levels[3])]
    return largest, map_to_tokens(maps[0]), map_to_tokens(maps[1]), map_to_tokens(maps[2])


def conv_norm_relu(x: Tensor, layers: nn.Sequential, halves: torch.dtype | None = None) -> Tensor:
    """Run convolutions, each followed by a norm and ReLU, and the max pool after them.

    A batch norm that uses its running statistics is folded into its convolution.

    Args:
        x: A map, channels last.
        layers: These.
        halves: The dtype that was asked for, where its products have a kernel here; or None.
    """
    found: list[Any] = list(layers)
    pairs = list(zip(found[::3], found[1::3], strict=False))
    # A single layer has no large map between others.
    if (
        len(pairs) > 1
        and bands.unsupported_reason(x) is None
        and (chain := _as_chain(found, pairs, x.dtype, halves is not None)) is not None
    ):
        return bands.in_bands(x, chain)
    for conv, norm in pairs:
        of_conv = folded(conv, norm, x.dtype)
        weight, bias = (conv.weight, None) if of_conv is None else of_conv
        if halves is not None and has_halves(conv):
            has_relu = of_conv is not None
            x = convolve(x, weight, bias, conv.stride[0], halves, has_relu=has_relu)
        elif of_conv is not None:
            x = F.conv2d(x, weight, bias, conv.stride, conv.padding).relu_()
        else:
            # Not by the module: its weight may be narrower than what is computed.
            x = F.conv2d(x, weight.to(x.dtype), None, conv.stride, conv.padding)
        x = normalize(norm, x, relu=True) if of_conv is None else x
    return found[-1](x) if isinstance(found[-1], nn.MaxPool2d) else x


def _as_chain(
    layers: Sequence[nn.Module],
    pairs: Sequence[tuple[Any, Any]],
    dtype: torch.dtype,
    is_half: bool,
) -> list[bands.Layer] | None:
    """Return convolutions with constant norm and ReLU, and a max pool, as a chain; None for others.

    ReLU leaves nothing below zero, so zeros around a map are as good to a max pool as its own.
    """
    chain: list[bands.Layer] = []
    for conv, norm in pairs:
        if (of_conv := folded(conv, norm, dtype)) is None:
            return None
        weight, bias = of_conv
        how = {"weight": weight, "bias": bias, "stride": conv.stride[0]}
        run: Callable[[Tensor], Tensor] = partial(bands.conv_relu, **how)
        if is_half and has_halves(conv):
            run = partial(half_conv.conv, **how, has_relu=True, pads_rows=False)
        chain.append(bands.Layer(run, conv.stride[0], conv.out_channels))
    if isinstance(layers[-1], nn.MaxPool2d):
        pool = partial(F.max_pool2d, kernel_size=3, stride=2, padding=(0, 1))
        chain.append(bands.Layer(pool, 2, chain[-1].channels))
    return chain
