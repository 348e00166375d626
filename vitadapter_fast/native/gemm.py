# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Matrices in, products out, by the fastest of the libraries that torch carries.

On the CPU torch multiplies float32 matrices with MKL. Where a processor that is not Intel's has
AVX-512, that runs at half the speed of oneDNN: this is torch's own call of oneDNN, made for its
compiler. GFLOP/s on one and two cores of an AMD EPYC (AVX-512), torch 2.13, mm against this:
1024 x 768 x 384 83 and 196, 189 and 418; 4096 x 384 x 1536 89 and 206, 180 and 415;
21504 x 384 x 96, gradient of the weight, 92 and 155, 168 and 277. With AVX2 alone MKL is the
faster: two cores of another EPYC, 1029 x 384 x 1536 155 against 136, a training step of
ViT-Adapter-S at 512 9 % less.

Matrices of 16 bits are multiplied in float32 where the processor does that faster: on x86-64
without AMX, AMD's AVX512_BF16 or, for float16, AVX512_FP16. 1024 x 384 x 1536 on two cores of an
Intel Xeon that has AVX512_BF16 and no AMX: 173 in bfloat16, 303 in float32. With AVX512_FP16 those
of bfloat16 have a kernel of their own: see half_linear.
"""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import extension, half_linear, memory, tensors, token_rows

_by_onednn: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
_has_onednn = (
    "AVX512" in torch.backends.cpu.get_cpu_capability()
    and _by_onednn is not None
    and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
)
_PIECE = 2688  # rows
_EXPECTED_BYTES = 2**20
_HEAP_BYTES = memory.HEAP_BYTES
_PLAIN = (Tensor, torch.nn.Parameter)
LOW = (torch.bfloat16, torch.float16)


@cache
def has_low_products(dtype: torch.dtype) -> bool:
    """Return whether this processor multiplies 16 bits of a dtype faster than float32."""
    module, _ = extension.load()
    return module is None or bool(module.has_low_products(extension.DTYPE_CODES[dtype]))


def compute_dtype(tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which matrices of ``dtype`` are multiplied where ``tensor`` lies.

    Wider than ``dtype`` where that is faster; sums are of float32. Where ``is_half`` holds,
    products of bfloat16 have a kernel of their own, and float32 is what lies between them.
    """
    if (
        dtype not in LOW
        or tensors.is_recorded()  # asked first: compilers cannot look into the extension
        or type(tensor) not in _PLAIN
        or not tensors.is_on_cpu(tensor)
        or has_low_products(dtype)
    ):
        return dtype
    return torch.float32


def is_half(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Return whether ``half_linear`` multiplies matrices of ``dtype`` where ``tensor`` lies."""
    return (
        dtype is torch.bfloat16
        and compute_dtype(tensor, dtype) is not dtype
        and half_linear.has_products()
    )


def linear(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    gamma: Tensor | None = None,
    plus: Tensor | None = None,
    overwrites: bool = False,
    is_suited: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return ``gamma * (rows @ weight.T + bias) + plus``, [N, C]; records no gradients.

    Args:
        rows: [N, K] of any strides.
        weight: [C, K] of any strides, in the same dtype.
        bias: [C] in the same dtype, or None.
        gamma: [C], or None for 1; where there is ``plus``, whose pass it shares.
        plus: [N, C] in a dtype that is no wider, or None.
        overwrites: Whether the result may come in the memory of ``plus``.
        is_suited: Whether all is known to be dense float32 on the CPU; else it is asked.
        dtype: Of the result; None: that of ``rows``.
    """
    product: Tensor
    dtype = rows.dtype if dtype is None else dtype
    if rows.dtype is torch.bfloat16 and _is_of_halves(rows, weight):
        return half_linear.linear(rows, weight, bias, gamma=gamma, plus=plus, dtype=dtype)
    nbytes = rows.shape[0] * weight.shape[0] * 4
    if not (is_suited or _is_suited(rows, weight)):
        if rows.dtype in LOW and (wide := compute_dtype(rows, rows.dtype)) is not rows.dtype:
            bias = None if bias is None else bias.to(wide)
            wider = rows.to(wide), weight.to(wide), bias
            return linear(*wider, gamma=gamma, plus=plus, dtype=dtype)
        product = F.linear(rows, weight, bias)
    elif nbytes > _HEAP_BYTES and _is_better_in_pieces(rows, weight):
        overwritten = plus if overwrites and plus is not None and plus.dtype is dtype else None
        return _in_pieces(rows, weight, bias, gamma, plus, overwritten, dtype)
    else:
        if nbytes >= _EXPECTED_BYTES:
            _expect_huge_pages()
        product = _product(rows, weight, bias)
    # Not oneDNN's fused sum: 5376 x 384 x 384 takes 4.5 ms and with that 7.4.
    if gamma is not None and plus is not None:
        torch.addcmul(plus, gamma, product, out=product)
    elif plus is not None:
        product.add_(plus)
    return product.to(dtype)


def _product(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if not _has_onednn:
        with tensors.without_autocast():  # it would multiply float32 in 16 bits
            return F.linear(rows, weight, bias)
    # It takes any strides of rows and weight, but reads the bias as dense memory.
    bias = None if bias is None else bias.contiguous()
    product: Tensor = _by_onednn(rows, weight, bias, "none", [], "")
    return product


def _is_better_in_pieces(rows: Tensor, weight: Tensor) -> bool:
    """Return whether pieces of a product that malloc maps anew are on its heap."""
    return _PIECE * weight.shape[0] * 4 <= _HEAP_BYTES and token_rows.is_ours(rows)


def _in_pieces(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gamma: Tensor | None,
    plus: Tensor | None,
    out: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """Return ``linear`` in ``out`` or in memory of few, large pages, which oneDNN's own is not.

    22050 x 192 x 384 takes 12.0 ms instead of 18.1, with a sum 12.8 instead of 20.1.
    """
    if out is None:
        shape = rows.shape[0], weight.shape[0]
        out = extension.in_huge_pages(rows.new_empty(shape, dtype=dtype))
    for i, some_rows in enumerate(torch.split(rows, _PIECE)):
        piece = slice(i * _PIECE, i * _PIECE + some_rows.shape[0])
        _expect_huge_pages()
        product = _product(some_rows, weight, bias)
        if plus is None:
            out[piece] = product
        else:
            product = product if gamma is None else product.mul_(gamma)  # in the cache
            torch.add(product, plus[piece], out=out[piece])
    return out


def weight_gradient(grad: Tensor, rows: Tensor) -> Tensor:
    """Return ``grad.T @ rows``, [C, K], the gradient of the weight of ``linear``.

    Args:
        grad: [N, C].
        rows: [N, K].
    """
    if grad.dtype is torch.bfloat16 and _is_of_halves(grad, rows):
        return half_linear.linear(grad.t(), rows.t(), dtype=grad.dtype)
    if (wide := compute_dtype(grad, grad.dtype)) is not grad.dtype:
        return weight_gradient(grad.to(wide), rows.to(wide)).to(grad.dtype)
    if not (_has_onednn and _is_suited(rows, grad) and token_rows.is_ours(grad)):
        return linear(grad.t(), rows.t())  # others take any strides
    # oneDNN wants its first matrix dense: transpose the smaller, in pieces that stay in the cache.
    if grad.shape[1] > rows.shape[1]:
        product = weight_gradient(rows, grad)
        return token_rows.transpose(product, extension.in_huge_pages(torch.empty_like(product)))
    if grad.stride(1) != 1:
        return linear(grad.t(), rows.t())
    total = None
    for some_grad, some_rows in zip(
        torch.split(grad, _PIECE), torch.split(rows, _PIECE), strict=True
    ):
        total = linear(token_rows.transpose(some_grad), some_rows.t(), plus=total)
    assert total is not None
    return total


def _expect_huge_pages() -> None:
    """Ask for huge pages under what torch allocates next, the product.

    The first touch of 60,000 small pages is 8 % of a training step of ViT-Adapter-S at 512 (AMD
    EPYC).
    """
    module, _ = extension.load()
    if module is not None:
        module.prefer_huge_pages_next(extension.AHEAD_BYTES)


def _is_of_halves(rows: Tensor, weight: Tensor) -> bool:
    return (
        is_half(rows, rows.dtype)
        and type(weight) in _PLAIN
        and weight.dtype is rows.dtype
        and rows.numel() > 0
        and weight.numel() > 0
    )


def _is_suited(rows: Tensor, weight: Tensor) -> bool:
    return (
        type(rows) in _PLAIN  # fake tensors, and others that only look like dense ones, go to torch
        and type(weight) in _PLAIN
        and tensors.is_on_cpu(rows)
        and rows.dtype == weight.dtype == torch.float32
        and not tensors.is_recorded()  # a compiler chooses GEMMs itself
        and rows.numel() > 0
        and weight.numel() > 0
    )
