# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels: csrc/ms_deform_attn/{forward,backward}_cuda.cu."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _native
from .._tensors import current_device, dense_rows, row_strides
from ._call import Call, pairs
from ._pointers import arguments, dense

_MAX_SIZES = 16  # kMaxLevels and kMaxGrids of points_cuda.cuh
_MAX_INT32 = 2**31 - 1

# Above this many points for a value pixel, records and a gather are taken to beat atomics: KERNELS
# by arithmetic (84 adds for every element in the extractor, 9 in the injector), not yet measured.
_POINTS_PER_PIXEL = 8


def unsupported_reason(call: Call) -> str | None:
    """Return why the CUDA kernels cannot run this call, or None."""
    if (reason := _native.cuda_unavailable_reason()) is not None:
        return reason
    if call.value.device.type != "cuda":
        return f"it runs on CUDA tensors, got {call.value.device}"
    return size_reason(call)


def size_reason(call: Call) -> str | None:
    """Return why a call is too large for the kernels' 32-bit indices, or None."""
    if len(call.level_hw) > 2 * _MAX_SIZES or len(call.query_hw) > 2 * _MAX_SIZES:
        return f"it takes at most {_MAX_SIZES} levels and query grids"
    B, _, M, _ = call.value.shape
    largest = max(call.weights.numel(), B * M * _num_cells(call), call.value.stride(1))
    if largest > _MAX_INT32:
        return f"it takes at most {_MAX_INT32} points, cells and elements in a row, got {largest}"
    return None


def forward(call: Call) -> Tensor:
    """Return the attended features, [B, Q, M * D] in the dtype of the value."""
    B, _, M, D = call.value.shape
    out = call.value.new_empty(B, call.points.shape[1], M * D)
    call = dense(call)
    with current_device(out):
        _native.launch(
            "ms_deform_attn_forward_cuda",
            **arguments(call),
            **_native.place(out),
            out=_native.address(out),
        )
    return out


def backward(call: Call, grad_out: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
    """Return the gradients of value, points and weights; None where ``needs`` says so."""
    with current_device(grad_out):
        return _backward(dense(call), dense_rows(grad_out), needs)


def _backward(call: Call, grad_out: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
    needs_value, needs_points, needs_weights = needs
    grad_points = call.points.new_empty(call.points.shape) if needs_points else None
    grad_weights = call.weights.new_empty(call.weights.shape) if needs_weights else None
    common = {
        **arguments(call),
        **_native.place(grad_out),
        "grad_out": _native.address(grad_out),
        "grad_out_strides": row_strides(grad_out),
    }
    points = {
        "grad_points": _native.address(grad_points),
        "grad_weights": _native.address(grad_weights),
    }
    grad_value = None
    if not needs_value:
        if needs_points or needs_weights:
            _native.launch(
                "ms_deform_attn_points_backward_cuda", **common, **points, sums_by_records=True
            )
    elif torch.are_deterministic_algorithms_enabled() or _is_crowded(call):
        grad_value = _by_records(call, common, points)
    else:
        grad_value = _by_atomics(call, common, points)
    return [grad_value, grad_points, grad_weights]


def _by_atomics(call: Call, common: dict[str, Any], points: dict[str, Any]) -> Tensor:
    # Rounded once: adding in bfloat16 costs 1.0e-2 of accuracy where this costs 1.7e-3.
    total = torch.zeros(call.value.shape, dtype=_compute(call), device=call.value.device)
    _native.launch(
        "ms_deform_attn_points_backward_cuda",
        **common,
        **points,
        grad_value=_native.address(total),
    )
    return total.to(call.value.dtype)


def _by_records(call: Call, common: dict[str, Any], points: dict[str, Any]) -> Tensor:
    B, _, M, _ = call.value.shape
    num_points, num_cells = call.weights.numel(), _num_cells(call)
    integers = {"dtype": torch.int32, "device": call.value.device}
    counts = torch.zeros(B * M * num_cells, **integers)  # type: ignore[call-overload]
    cells = torch.empty(num_points, **integers)  # type: ignore[call-overload]
    ranks = torch.empty_like(cells)
    # A record: attention, position within its cell, query; 16 bytes, 32 for float64.
    records = torch.empty(num_points, 4, dtype=_compute(call), device=call.value.device)
    workspace = {
        "cell_of_point": _native.address(cells),
        "rank_of_point": _native.address(ranks),
        "points_in_cell": _native.address(counts),
        "records": _native.address(records),
    }
    _native.launch(
        "ms_deform_attn_points_backward_cuda",
        **common,
        **points,
        **workspace,
        sums_by_records=True,
    )
    ends = counts.cumsum(0, dtype=torch.int32)
    workspace["cell_end"] = _native.address(ends)
    if torch.are_deterministic_algorithms_enabled():
        # Ranks are in the order in which threads came; a stable sort puts points in theirs.
        sorted_records = records.index_select(0, _order(call, cells, num_cells))
        workspace["sorted_records"] = _native.address(sorted_records)
    else:
        sorted_records = torch.empty_like(records)
        workspace["sorted_records"] = _native.address(sorted_records)
        _native.launch("ms_deform_attn_place_cuda", **common, **workspace)
    grad_value = call.value.new_empty(call.value.shape)
    _native.launch(
        "ms_deform_attn_gather_cuda", **common, **workspace, grad_value=_native.address(grad_value)
    )
    return grad_value


def _order(call: Call, cells: Tensor, num_cells: int) -> Tensor:
    """Return the points sorted by image, head and cell, those that read nothing last."""
    B, Q, M, L, P, _ = call.points.shape
    owner = torch.arange(B * M, device=cells.device).view(B, 1, M, 1) * num_cells
    local = cells.view(B, Q, M, L * P)
    keys = torch.where(local < 0, B * M * num_cells, local + owner)
    return keys.flatten().argsort(stable=True)


def _compute(call: Call) -> torch.dtype:
    return torch.promote_types(call.value.dtype, torch.float32)


def _num_cells(call: Call) -> int:
    return sum((h + 1) * (w + 1) for h, w in pairs(call.level_hw))


def _is_crowded(call: Call) -> bool:
    _, Q, _, L, P, _ = call.points.shape
    return _POINTS_PER_PIXEL * call.value.shape[1] < Q * L * P
