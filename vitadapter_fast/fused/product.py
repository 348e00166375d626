# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A map and a convolution without overlap in, its result out: where better, a matrix product.

While compiling it is: of all that lies before a convolution torch's compiler wants the layout of
maps, of the ViT's queries and keys and the values of the deformable attention too. It then orders
strides, and cannot where sizes are symbols (torch 2.13, in training: "cannot determine truth value
of Relational").
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..native import extension, gemm, token_rows
from ._choice import touched_reason
from .half_convolution import half_dtype, multiply
from .maps import map_to_tokens, tokens_to_map


def is_product(layer: nn.Module, kind: type[nn.Module], size: int) -> bool:
    """Return whether a convolution has a bias and, for each pixel, one of ``size`` a side."""
    return (
        type(layer) is kind
        and isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d))
        and layer.kernel_size == layer.stride == (size, size)
        and layer.padding == layer.output_padding == (0, 0)
        and layer.dilation == (1, 1)
        and layer.groups == 1
        and layer.bias is not None
    )


def project(level: Tensor, spm: Any, name: str, halves: torch.dtype | None) -> Tensor:
    """Return a 1 x 1 convolution of ``spm``, by its name, of a map that is channels last.

    Args:
        level: The map.
        spm: Its owner.
        name: ``fc1`` to ``fc4``.
        halves: The dtype of the convolutions of ``spm``, where its products have a kernel here; or
            None.
    """
    layer, is_compiled = getattr(spm, name), torch.compiler.is_compiling()
    if (
        not (is_compiled or halves is not None or _is_large(level))
        or touched_reason(spm, name) is not None
        or not is_product(layer, nn.Conv2d, 1)
        or (halves is not None and half_dtype(level, layer.weight) is not halves)
    ):
        result: Tensor = layer(level)
        return result
    matrix = layer.weight.flatten(1)
    if is_compiled:
        product = F.linear(level.permute(0, 2, 3, 1), matrix, layer.bias)
        return product.permute(0, 3, 1, 2)
    rows = map_to_tokens(level).flatten(0, 1)
    if halves is not None:
        product = multiply(rows, matrix, layer.bias, halves)
    else:
        product = gemm.linear(rows, matrix, layer.bias)
    B, _, h, w = level.shape
    return tokens_to_map(product.view(B, h * w, -1), (h, w))


def _is_large(level: Tensor) -> bool:
    """Return whether the product is worth memory in huge pages, which torch's own is not."""
    return (
        level.nbytes >= extension.LARGE_BYTES
        and not torch.is_grad_enabled()
        and token_rows.is_ours(level)
        and not torch.is_autocast_enabled("cpu")
    )


def double(level: Tensor, up: nn.Module) -> Tensor:
    """Return ``up(level)``, a 2 x 2 transposed convolution, untouched, of a map channels last."""
    if not (torch.compiler.is_compiling() and is_product(up, nn.ConvTranspose2d, 2)):
        result: Tensor = up(level)
        return result
    assert isinstance(up, nn.ConvTranspose2d) and up.bias is not None
    product = F.linear(level.permute(0, 2, 3, 1), taps(up.weight), up.bias.repeat(4))
    pixels = torch.unflatten(product, 3, (2, 2, -1)).transpose(2, 3)  # [B, h, 2, w, 2, C]
    return pixels.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


def taps(weight: Tensor) -> Tensor:
    """Return 2 x 2 kernels, [K, C, 2, 2], as a matrix, [2 * 2 * C, K]."""
    return weight.permute(2, 3, 1, 0).flatten(0, 2)
