# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A map in, the result of a chain of 3 x 3 layers out, band by band: no large map between them."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..native import extension, tensors

# Of the largest band. The stem of S takes 30 ms instead of 44 for an image of 512, 159 instead of
# 220 for 800 x 1344 (2 cores of an AMD EPYC), as long with half or twice as many bytes.
_BAND_BYTES = 5 * 2**20


class Layer(NamedTuple):
    """A layer that looks at the 3 x 3 pixels around those it keeps.

    Attributes:
        run: Maps [B, C, h + 2, w] to [B, C', ceil(h / stride), ceil(w / stride)]: it pads columns,
            with a zero on each side, but not rows.
        stride: Of the pixels that it keeps.
        channels: C'.
    """

    run: Callable[[Tensor], Tensor]
    stride: int
    channels: int


def conv_relu(x: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
    """Run a 3 x 3 convolution and ReLU as a ``Layer`` does."""
    return F.conv2d(x, weight, bias, stride, (0, 1)).relu_()


def unsupported_reason(x: Tensor) -> str | None:
    """Return why a map does not go through its layers in bands, or None."""
    if torch.is_grad_enabled():
        return "a backward pass needs the maps"
    if tensors.is_recorded():
        return "a compiler or tracer records it"
    if type(x) is not Tensor or not tensors.is_on_cpu(x):
        return "only on the CPU it is worth it"
    return None


def in_bands(x: Tensor, layers: Sequence[Layer]) -> Tensor:
    """Return ``layers`` on ``x``, one after the other, with zeros around every map.

    Args:
        x: [B, I, H, W], channels last; H is a multiple of all strides together.
        layers: At least one. Rows between two bands are computed twice by all but the last.
    """
    height = x.shape[2] // math.prod(layer.stride for layer in layers)
    rows = max(1, _BAND_BYTES * height // _largest_bytes(x, layers))
    out = None
    for first in range(0, height, rows):
        last = min(first + rows, height)
        band = _rows_of(x, layers, first, last)
        if out is None:
            B, C, _, W = band.shape
            out = extension.in_huge_pages(band.new_empty((B, height, W, C))).permute(0, 3, 1, 2)
        out[:, :, first:last] = band
    assert out is not None
    return out


def _largest_bytes(x: Tensor, layers: Sequence[Layer]) -> int:
    pixels, largest = x.shape[0] * x.shape[2] * x.shape[3], 1
    for layer in layers:
        pixels //= layer.stride**2
        largest = max(largest, pixels * layer.channels)
    return largest * x.element_size()


def _rows_of(x: Tensor, layers: Sequence[Layer], first: int, last: int) -> Tensor:
    """Return the rows from ``first`` to before ``last`` of the result of ``layers`` on ``x``."""
    if not layers:
        return x[:, :, first:last]
    before, layer = layers[:-1], layers[-1]
    height = x.shape[2] // math.prod(other.stride for other in before)
    above, below = first * layer.stride - 1, (last - 1) * layer.stride + 2
    rows = _rows_of(x, before, max(above, 0), min(below, height))
    if above < 0 or below > height:
        rows = F.pad(rows, (0, 0, max(-above, 0), max(below - height, 0)))
    return layer.run(rows)
