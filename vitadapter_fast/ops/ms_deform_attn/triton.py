# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels: _triton_forward.py, _triton_backward.py, _triton_gather.py."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .. import _triton
from .._arguments import pairs
from .._triton import Config, Table
from . import _value_gradient
from ._call import Call, new_outputs, num_cells, size_reason
from ._value_gradient import Bins

_MAX_IMAGES = 65535  # of the second axis of a launch


def unsupported_reason(call: Call) -> str | None:
    """Return why the Triton kernels cannot run this call, or None."""
    if (reason := _triton.unsupported_reason(call.value)) is not None:
        return reason
    if call.value.shape[0] > _MAX_IMAGES:
        return f"it takes at most {_MAX_IMAGES} images, got {call.value.shape[0]}"
    return size_reason(call)


def forward(call: Call) -> Tensor:
    """Return the attended features, [B, Q, M * D] in the dtype of the value."""
    from ._triton_forward import CONFIGS, forward_kernel

    out = new_outputs(call)
    arguments = _arguments(call)

    def run(config: Config) -> None:
        launch = _tiles(call, config)
        _triton.launch(forward_kernel, **launch, **arguments, out=out)

    with _triton.current_device(out):
        width = _padded(call.value.shape[3])
        _triton.run_configured(_key("forward", call), _default(CONFIGS, call), run, width=width)
    return out


def backward(call: Call, grad_out: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
    """Return the gradients of value, points and weights; None where ``needs`` says so."""
    with _triton.current_device(grad_out):
        return _value_gradient.backward(call, needs, _Kernels(call, grad_out))


class _Kernels:
    def __init__(self, call: Call, grad_out: Tensor) -> None:
        self._call = call
        self._grad_out = _triton.rows("grad_out", grad_out)
        self._cells = num_cells(call)

    def differentiate(
        self,
        grad_points: Tensor | None,
        grad_weights: Tensor | None,
        total: Tensor | None,
        bins: Bins | None,
    ) -> None:
        from ._triton_backward import CONFIGS, points_backward_kernel

        call = self._call
        L, P = call.points.shape[3:5]
        # Compilers that trace a launch want a tensor where the kernel uses none.
        unused = call.value
        arguments = {
            **_arguments(call),
            **self._grad_out,
            "grad_points": unused if grad_points is None else grad_points,
            "grad_weights": unused if grad_weights is None else grad_weights,
            "total": unused if total is None else total,
            "cell_of_point": bins.cell_of_point if bins else unused,
            "rank_of_point": bins.rank_of_point if bins else unused,
            "points_in_cell": bins.points_in_cell if bins else unused,
            "records": bins.records if bins else unused,
            "tokens": call.value.shape[1],
            "cells": self._cells,
            "IS_ADDED": total is not None,
            "IS_BINNED": bins is not None,
            "NEEDS_POINTS": grad_points is not None,
            "NEEDS_WEIGHTS": grad_weights is not None,
            "LP_PAD": _padded(L * P),
        }

        def run(config: Config) -> None:
            _triton.launch(points_backward_kernel, **_tiles(call, config), **arguments)

        mode = "atomics" if total is not None else "records" if bins else "points"
        sums = total if bins is None else bins.points_in_cell
        _triton.run_configured(
            _key(f"backward by {mode}", call),
            _default(CONFIGS[mode], call),
            run,
            width=_padded(call.value.shape[3]),
            adds_to=sums,
        )

    def place(self, bins: Bins) -> None:
        from ._triton_gather import PLACE_CONFIG, place_kernel

        _, Q, M, L, P, _ = self._call.points.shape
        count = bins.cell_of_point.numel()

        def run(config: Config) -> None:
            _triton.launch(
                place_kernel,
                grid=(-(-count // config.rows),),
                **_launch_parameters(config),
                cell_of_point=bins.cell_of_point,
                rank_of_point=bins.rank_of_point,
                points_in_cell=bins.points_in_cell,
                cell_end=bins.cell_end,
                records=bins.records,
                sorted_records=bins.sorted_records,
                count=count,
                points_per_image=Q * M * L * P,
                cells=self._cells,
                M=int(M),
                PER_QUERY=int(L * P),
            )

        _triton.run_configured(_key("place", self._call), PLACE_CONFIG, run, width=4)

    def gather(self, bins: Bins, grad_value: Tensor) -> None:
        from ._triton_gather import CONFIGS, gather_kernel

        call = self._call
        B, S, M, _ = call.value.shape

        def run(config: Config) -> None:
            _triton.launch(
                gather_kernel,
                grid=(-(-S // config.rows) * M, B),
                **_launch_parameters(config),
                **_shape(call),
                **_triton.packed_sizes("hw", pairs(call.level_hw)),
                **self._grad_out,
                points_in_cell=bins.points_in_cell,
                cell_end=bins.cell_end,
                sorted_records=bins.sorted_records,
                grad_value=grad_value,
                tokens=S,
                cells=self._cells,
            )

        width = _padded(call.value.shape[3])
        _triton.run_configured(_key("gather", call), _default(CONFIGS, call), run, width=width)


def _arguments(call: Call) -> dict[str, Any]:
    """Return what forward and backward are told of a call; hold it until the launch returns."""
    return {
        **_triton.rows("value", call.value),
        **_triton.rows("points", call.points),
        **_triton.rows("weights", call.weights),
        **_triton.packed_sizes("hw", pairs(call.level_hw)),
        **_triton.packed_sizes("qhw", pairs(call.query_hw)),
        **_shape(call),
        "queries": call.points.shape[1],
        "P": int(call.points.shape[4]),
        "P_PAD": _padded(call.points.shape[4]),
        "GRIDS": len(call.query_hw) // 2,
    }


def _shape(call: Call) -> dict[str, int]:
    M, D = map(int, call.value.shape[2:])
    return {"M": M, "D": D, "D_PAD": _padded(D), "L": len(call.level_hw) // 2}


def _tiles(call: Call, config: Config) -> dict[str, Any]:
    """Return the launch over all tiles of queries, heads and images."""
    B, Q, M = call.points.shape[:3]
    tile_w = 1 << config.rows.bit_length() // 2  # as wide as high, or twice as wide
    tile_h = config.rows // tile_w
    if call.query_hw:
        tiles = sum(-(-h // tile_h) * -(-w // tile_w) for h, w in pairs(call.query_hw))
    else:
        tiles = -(-Q // config.rows)
    return {"grid": (tiles * M, B), "TILE_W": tile_w, **_launch_parameters(config)}


def _launch_parameters(config: Config) -> dict[str, int]:
    return {"ROWS": config.rows, "num_warps": config.num_warps, "num_stages": config.num_stages}


def _padded(count: int) -> int:
    """Return the next power of two."""
    return 1 << max(int(count) - 1, 0).bit_length()


def _default(table: Table, call: Call) -> Config:
    element, channels = call.value.element_size(), max(16, _padded(call.value.shape[3]))
    return table.get((element, channels)) or table[0, 0]


def _key(kernel: str, call: Call) -> tuple[Any, ...]:
    kinds = call.value.dtype, call.points.dtype, call.weights.dtype
    sizes = *call.value.shape[2:], *call.points.shape[3:5]
    # Ints: under a compiler sizes may be symbols.
    return kernel, call.op, call.value.device, *kinds, *map(int, sizes)
