# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A call, the gradient of its output and kernels in; all gradients out. For every GPU backend.

The gradient of the value is summed in one of two ways. Atomics: every point adds to its four pixels
in a buffer of the compute type. Records: every point leaves a record in the cell between pixels
that it lies in, records are moved next to those of their cell, and each pixel gathers from its four
cells. With the records of a cell in a fixed order the result is the same, bit for bit, every time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ._call import Call, num_cells

# Above this many points for a value pixel, records and a gather are taken to beat atomics: KERNELS
# by arithmetic (84 adds for every element in the extractor, 9 in the injector), not yet measured.
POINTS_PER_PIXEL = 8


@dataclass
class Bins:
    """Points by the cell between pixels that they lie in; N points, one set of cells a head.

    Attributes:
        cell_of_point: [N], cell of the image and head, or -1 where the point reads nothing.
        rank_of_point: [N], number of earlier points in its cell, in any order.
        points_in_cell: [B * M * cells].
        records: [N, 4], attention, (x, y) within the cell, and the bits of the query's index.
        cell_end: Inclusive sum of ``points_in_cell``.
        sorted_records: [N, 4], those of a cell side by side.
    """

    cell_of_point: Tensor
    rank_of_point: Tensor
    points_in_cell: Tensor
    records: Tensor
    cell_end: Tensor
    sorted_records: Tensor


class Kernels(Protocol):
    """What a backend launches for one call and its cotangent."""

    def differentiate(
        self,
        grad_points: Tensor | None,
        grad_weights: Tensor | None,
        total: Tensor | None,
        bins: Bins | None,
    ) -> None:
        """Write the gradients of points and weights; add to ``total``, or fill the first four."""

    def place(self, bins: Bins) -> None:
        """Move every record to its place among those of its cell."""

    def gather(self, bins: Bins, grad_value: Tensor) -> None:
        """Sum the sorted records into the gradient of the value."""


def backward(call: Call, needs: Sequence[bool], kernels: Kernels) -> list[Tensor | None]:
    """Return the gradients of value, points and weights; None where ``needs`` says so."""
    needs_value, needs_points, needs_weights = needs
    grad_points = call.points.new_empty(call.points.shape) if needs_points else None
    grad_weights = call.weights.new_empty(call.weights.shape) if needs_weights else None
    grad_value = None
    if not needs_value:
        if needs_points or needs_weights:
            kernels.differentiate(grad_points, grad_weights, None, None)
    elif torch.are_deterministic_algorithms_enabled() or _is_crowded(call):
        grad_value = _by_records(call, grad_points, grad_weights, kernels)
    else:
        grad_value = _by_atomics(call, grad_points, grad_weights, kernels)
    return [grad_value, grad_points, grad_weights]


def _by_atomics(
    call: Call, grad_points: Tensor | None, grad_weights: Tensor | None, kernels: Kernels
) -> Tensor:
    # Rounded once: adding in bfloat16 costs 1.0e-2 of accuracy where this costs 1.7e-3.
    total = torch.zeros(call.value.shape, dtype=_compute(call), device=call.value.device)
    kernels.differentiate(grad_points, grad_weights, total, None)
    return total.to(call.value.dtype)


def _by_records(
    call: Call, grad_points: Tensor | None, grad_weights: Tensor | None, kernels: Kernels
) -> Tensor:
    B, _, M, _ = call.value.shape
    num_points, device = call.weights.numel(), call.value.device
    cells = torch.empty(num_points, dtype=torch.int32, device=device)
    counts = torch.zeros(B * M * num_cells(call), dtype=torch.int32, device=device)
    # 16 bytes a record, 32 for float64.
    records = torch.empty(num_points, 4, dtype=_compute(call), device=device)
    bins = Bins(cells, torch.empty_like(cells), counts, records, counts, records)
    kernels.differentiate(grad_points, grad_weights, None, bins)
    bins.cell_end = counts.cumsum(0, dtype=torch.int32)
    if torch.are_deterministic_algorithms_enabled():
        # Ranks are in the order in which threads came; a stable sort puts points in theirs.
        bins.sorted_records = records.index_select(0, _order(call, cells))
    else:
        bins.sorted_records = torch.empty_like(records)
        kernels.place(bins)
    grad_value = call.value.new_empty(call.value.shape)
    kernels.gather(bins, grad_value)
    return grad_value


def _order(call: Call, cells: Tensor) -> Tensor:
    """Return the points sorted by image, head and cell, those that read nothing last."""
    B, Q, M, L, P, _ = call.points.shape
    count = num_cells(call)
    owner = torch.arange(B * M, device=cells.device).view(B, 1, M, 1) * count
    local = cells.view(B, Q, M, L * P)
    keys = torch.where(local < 0, B * M * count, local + owner)
    return keys.flatten().argsort(stable=True)


def _compute(call: Call) -> torch.dtype:
    return torch.promote_types(call.value.dtype, torch.float32)


def _is_crowded(call: Call) -> bool:
    _, Q, _, L, P, _ = call.points.shape
    return POINTS_PER_PIXEL * call.value.shape[1] < Q * L * P
