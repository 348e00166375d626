# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""What one call carries, and every check of it, shared by the op's backends and its fake."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...native.tensors import dense_rows
from .._arguments import FLOATS, has_bad_sizes, num_pixels, pairs

MAX_SIZES = 16  # of levels and of query grids, in GPU kernels
_MAX_INT32 = 2**31 - 1


class Call(NamedTuple):
    """One call of either entry point; they differ in where a point lies and what it weighs.

    Attributes:
        op: Name of the entry point, for messages.
        value: Maps, [B, S, M, D].
        level_hw: h0, w0, h1, w1, ... of the levels.
        query_hw: The same for the query grids; empty for ``ms_deform_attn``, whose ``points`` are
            locations and ``weights`` weights; otherwise they are pixel offsets and logits.
        points: [B, Q, M, L, P, 2] as (x, y).
        weights: [B, Q, M, L, P].
    """

    op: str
    value: Tensor
    level_hw: list[int]
    query_hw: list[int]
    points: Tensor
    weights: Tensor


def with_heads(value: Tensor, points: Tensor) -> Tensor:
    """View maps [B, S, M * D] as [B, S, M, D] by the heads of the points; others stay as they are.

    Compilers keep for backward what an operator is given, and whatever has four dimensions they may
    take for a map of pixels.
    """
    heads = points.shape[2] if value.dim() == 3 and points.dim() == 6 else 0
    if heads == 0 or value.shape[2] % heads:
        return value  # as it is, or refused by check
    return torch.unflatten(value, 2, (heads, value.shape[2] // heads))


def classic_call(value: Tensor, level_hw: list[int], points: Tensor, weights: Tensor) -> Call:
    """Return the call of ``ms_deform_attn``."""
    return Call("ms_deform_attn", with_heads(value, points), level_hw, [], points, weights)


def grid_call(
    value: Tensor, level_hw: list[int], query_hw: list[int], points: Tensor, weights: Tensor
) -> Call:
    """Return the call of ``ms_deform_attn_grid``; raise ValueError without query grids."""
    if not query_hw:
        raise ValueError("ms_deform_attn_grid: query_hw must name at least one (h, w) grid, got []")
    value = with_heads(value, points)
    return Call("ms_deform_attn_grid", value, level_hw, query_hw, points, weights)


def dense(call: Call) -> Call:
    """Return the call with tensors that kernels can read; hold it until the launch returns."""
    return call._replace(
        value=dense_rows(call.value),
        points=dense_rows(call.points),
        weights=dense_rows(call.weights),
    )


def num_cells(call: Call) -> int:
    """Return how many cells lie between, and beside, the pixels of all levels."""
    return sum((h + 1) * (w + 1) for h, w in pairs(call.level_hw))


def size_reason(call: Call) -> str | None:
    """Return why a call is too large for the indices of GPU kernels, or None."""
    if len(call.level_hw) > 2 * MAX_SIZES or len(call.query_hw) > 2 * MAX_SIZES:
        return f"it takes at most {MAX_SIZES} levels and query grids"
    B, S, M, _ = call.value.shape
    # A pixel has at most four cells.
    cells = 4 * B * M * S
    if cells > _MAX_INT32:
        cells = B * M * num_cells(call)
    for size in (call.weights.numel(), cells, call.value.stride(1)):
        if size > _MAX_INT32:
            return f"it takes at most {_MAX_INT32} points, cells and elements in a row, got {size}"
    return None


def check(call: Call) -> None:
    """Raise ValueError unless all shapes, dtypes and devices agree."""
    op, value, level_hw, query_hw, points, weights = call
    points_name, weights_name = ("offsets", "logits") if query_hw else ("locations", "weights")
    _check_sizes(op, "level_hw", level_hw)
    levels = len(level_hw) // 2
    if value.dim() != 4:
        raise ValueError(
            f"{op}: value must be [B, S, M, D] or [B, S, M * D], got {tuple(value.shape)}"
        )
    shape = points.shape
    if len(shape) != 6 or shape[3] != levels or shape[5] != 2:
        raise ValueError(
            f"{op}: {points_name} must be [B, Q, M, {levels}, P, 2] to match level_hw, "
            f"got {tuple(shape)}"
        )
    if weights.shape != shape[:5]:
        raise ValueError(
            f"{op}: {weights_name} must be {tuple(shape[:5])} to match {points_name}, "
            f"got {tuple(weights.shape)}"
        )
    B, S, M, _ = value.shape
    if shape[0] != B or shape[2] != M:
        raise ValueError(
            f"{op}: {points_name} must begin [{B}, Q, {M}] to match value {tuple(value.shape)}, "
            f"got {tuple(shape)}"
        )
    if num_pixels(level_hw) != S:
        raise ValueError(
            f"{op}: level_hw {pairs(level_hw)} must hold as many pixels as value has tokens, {S}"
        )
    if query_hw:
        _check_sizes(op, "query_hw", query_hw)
        if num_pixels(query_hw) != shape[1]:
            raise ValueError(
                f"{op}: query_hw {pairs(query_hw)} must hold as many pixels as there are queries, "
                f"{shape[1]}"
            )
    _check_types(call, points_name, weights_name)


def _check_sizes(op: str, name: str, flat: list[int]) -> None:
    if has_bad_sizes(flat):
        raise ValueError(f"{op}: {name} must be (h, w) pairs of positive sizes, got {list(flat)}")


def _check_types(call: Call, points_name: str, weights_name: str) -> None:
    op, value, _, query_hw, points, weights = call
    dtype, device = value.dtype, value.device
    if dtype not in FLOATS:
        raise ValueError(f"{op}: value must be a floating tensor, got {dtype}")
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for name, tensor, narrow in (
        (points_name, points, dtype if query_hw else wide),
        (weights_name, weights, dtype),
    ):
        if tensor.dtype not in (wide, narrow):
            wanted = " or ".join(sorted({str(wide), str(narrow)}))
            raise ValueError(
                f"{op}: {name} must be {wanted} with a {dtype} value, got {tensor.dtype}"
            )
        if tensor.device != device:
            raise ValueError(f"{op}: {name} must be on {device} with value, got {tensor.device}")


def new_outputs(call: Call) -> Tensor:
    """Return memory for the attended features, [B, Q, M * D]."""
    B, _, M, D = call.value.shape
    return call.value.new_empty(B, call.points.shape[1], M * D)


def flops(call: Call) -> int:
    """Return 8 for every point and channel: 4 corners."""
    return 8 * call.weights.numel() * call.value.shape[3]


def backward_flops(call: Call, needs: Sequence[bool]) -> int:
    """Return the same for the gradient of the values, and once for the others.

    Those of points and weights are made of the products of each corner with the gradient.
    """
    return flops(call) * (needs[0] + (needs[1] or needs[2]))
