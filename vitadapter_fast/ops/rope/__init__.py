# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Rotary position embedding of a token grid: projected tokens in, rotated ones out.

Cosines and sines come for each row and each column, never for each token.
"""

from typing import Any

from torch import Tensor

from .._arguments import check_types, integers
from .._backends import requested
from .._flops import none
from .._library import define_forward, define_gradient
from . import cpu, cuda, reference, triton
from ._call import Call, check, new_outputs

BACKENDS = (cuda, cpu, triton, reference)


def rope(
    qkv: Tensor,
    tables: Tensor,
    hw: tuple[int, int],
    *,
    is_inverse: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Rotate the queries and keys of a token grid by their positions.

    Components d and D / 2 + d of a head are a pair, for d < D / 2. With K = D / 4, pair d of the
    token in row i, column j rotates by the angle of row i for d < K, else of column j.

    Args:
        qkv: Queries, keys and values, [B, N, 3, M, D]; the first h * w tokens are those of the
            grid, row by row, all others stay as they are. D is a multiple of 4; float32, float16,
            bfloat16 or float64.
        tables: Cosines and sines of the angles of rows, then of columns, [h + w, 2, D / 4];
            float32, or float64 with float64 ``qkv``. They take no gradients.
        hw: (h, w) of the grid.
        is_inverse: Whether to rotate back.
        backend: A name, or None for the first that can run.

    Returns:
        [B, N, 3, M, D] in the dtype of ``qkv``, computed in the dtype of ``tables``. Saved for
        backward are the tables alone.

    Raises:
        TypeError: An argument is of another type.
        ValueError: A shape, dtype, device or size disagrees, or the tables require gradients.
        BackendUnavailable: The named backend cannot run; says why.

    Source: Su et al. 2021, arXiv:2104.09864, in the form of Simeoni et al. 2025, arXiv:2508.10104.
    """
    op = "rope"
    check_types(op, backend, qkv=qkv, tables=tables)
    if tables.requires_grad:
        raise ValueError("rope: tables must not require gradients, which are not computed")
    sizes = integers(op, "hw", hw)
    return _forward(qkv, tables, sizes, bool(is_inverse), backend=backend)  # type: ignore[no-any-return]


_forward = define_forward(
    "rope",
    "Tensor qkv, Tensor tables, SymInt[] hw, bool is_inverse",
    "Tensor",
    call_of=Call,
    check=check,
    new_outputs=new_outputs,
    flops=none,
    backends=BACKENDS,
)


def _save(ctx: Any, inputs: Any, keyword_only_inputs: Any, output: Tensor) -> None:
    _, tables, ctx.hw, ctx.is_inverse = inputs
    # Autograd may run backward in another thread, which does not see the caller's with block.
    ctx.backend = requested(keyword_only_inputs["backend"])
    ctx.save_for_backward(tables)


def _gradient(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    (tables,) = ctx.saved_tensors
    grad = _forward(grad_out, tables, ctx.hw, not ctx.is_inverse, backend=ctx.backend)
    return grad, None, None, None


define_gradient(_forward, _save, _gradient)
