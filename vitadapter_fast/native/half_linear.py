# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Matrices in, products of 16 bits out, by a kernel of ours: csrc/half_linear.

For bfloat16 on processors with AVX512_FP16, whose float16 has twice the multiply-adds of float32.
Each row of either matrix is multiplied with a power of two and rounded to the 11 significant bits
of float16 (bfloat16, with 8, is not changed); sums of 96 products are of float16, those of these
float32. 1024 x 384 x 1536 on two cores of an Intel Xeon (model 207): 2.2 ms, in float32 4.0, torch
in bfloat16 7.7.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from . import extension, token_rows

_ROWS, _INPUTS = 8, 16  # kLeftRows and kHalfInputs of csrc/common/size.h
DTYPES = (torch.float32, torch.bfloat16)


@cache
def has_products() -> bool:
    """Return whether this processor multiplies 16 bits faster than float32, by our kernel."""
    module, _ = extension.load()
    return module is not None and bool(module.has_half_products())


def linear(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    gamma: Tensor | None = None,
    plus: Tensor | None = None,
    has_gelu: bool = False,
    dtype: torch.dtype,
) -> Tensor:
    """Return ``plus + gamma * (rows @ weight.T + bias)``, [N, C]; records no gradients.

    Args:
        rows: [N, K], float32 or bfloat16; a row with a number that is not finite gives NaN.
        weight: [C, K], float32 or bfloat16; likewise.
        bias: [C] or None.
        gamma: [C], or None for 1.
        plus: [N, C], float32 or bfloat16, or None.
        has_gelu: Whether GELU of ``rows``, exact, is multiplied.
        dtype: Of the result, float32 or bfloat16.
    """
    return _launch(rows, weight, bias, gamma, plus, has_gelu, dtype)


def weight_gradient(grad: Tensor, rows: Tensor, *, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the gradients of a linear layer's weight, [C, K], and of its bias, float32, [C].

    Args:
        grad: That of its result, [N, C], float32 or bfloat16.
        rows: What it read, [N, K], likewise.
        dtype: Of the first result, float32 or bfloat16.
    """
    sums = grad.new_empty(grad.shape[1], dtype=torch.float32)
    return _launch(grad.t(), rows.t(), None, None, None, False, dtype, sums=sums), sums


def norm_linear(
    rows: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``layer_norm(rows) @ weight.T + bias``, [N, C]; records no gradients.

    The normalized rows are of float32 and nowhere but in the cache.

    Args:
        rows: [N, K], float32 or bfloat16; a row with a number that is not finite gives NaN.
        norm_weight: [K].
        norm_bias: [K].
        eps: Added to the variance.
        weight: [C, K], float32 or bfloat16.
        bias: [C] or None.
        dtype: Of the result, float32 or bfloat16.

    Returns:
        The result; mean and 1 / deviation of each row, float32, [N, 1].
    """
    mean, rstd = (rows.new_empty((rows.shape[0], 1), dtype=torch.float32) for _ in range(2))
    norm = {"norm_weight": _as_floats(norm_weight), "norm_bias": _as_floats(norm_bias), "eps": eps}
    norm |= {"mean": mean, "rstd": rstd}
    return _launch(rows, weight, bias, None, None, False, dtype, **norm), mean, rstd


def _launch(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gamma: Tensor | None,
    plus: Tensor | None,
    has_gelu: bool,
    dtype: torch.dtype,
    **more: Any,
) -> Tensor:
    (N, K), C = rows.shape, weight.shape[0]
    rows, x_strides = _with_strides(rows, has_gelu or "eps" in more)
    weight, weight_strides = _with_strides(weight)
    plus = None if plus is None else plus.contiguous()
    out = extension.in_huge_pages(rows.new_empty((N, C), dtype=dtype))
    nbytes = -(-N // _ROWS) * (-(-K // _INPUTS) * _INPUTS * 2 * _ROWS + 64)
    extension.launch(
        "half_linear_cpu",
        x=rows,
        x_dtype=extension.DTYPE_CODES[rows.dtype],
        x_strides=x_strides,
        weight=weight,
        weight_dtype=extension.DTYPE_CODES[weight.dtype],
        weight_strides=weight_strides,
        gamma=_as_floats(gamma),
        bias=_as_floats(bias),
        plus=plus,
        plus_dtype=extension.DTYPE_CODES[dtype if plus is None else plus.dtype],
        has_gelu=has_gelu,
        **more,
        shape=(N, K, C),
        halves=token_rows.kept_bytes(nbytes),
        out=out,
        out_dtype=extension.DTYPE_CODES[dtype],
        num_threads=torch.get_num_threads(),
    )
    return out


def _with_strides(rows: Tensor, is_dense: bool = False) -> tuple[Tensor, tuple[int, int]]:
    """Return rows that are dense, or columns of dense memory, and their strides."""
    rows = rows.resolve_neg()  # which may lay it out anew
    to_row, to_input = rows.stride()
    if to_input == 1 or rows.shape[1] == 1:
        return rows, (to_row, 1)
    if to_row == 1 and not is_dense:
        return rows, (1, to_input)
    return rows.contiguous(), (rows.shape[1], 1)


def _as_floats(vector: Tensor | None) -> Tensor | None:
    return None if vector is None else vector.detach().float().contiguous()
