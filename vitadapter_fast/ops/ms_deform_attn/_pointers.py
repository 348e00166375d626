# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A call in, the arguments of a compiled launcher out; shared by the cpu and cuda backends."""

from typing import Any

from .. import _native
from .._tensors import row_strides
from ._call import Call


def arguments(call: Call) -> dict[str, Any]:
    """Return the launcher arguments that describe a call of dense rows."""
    return {
        "value": _native.address(call.value),
        "points": _native.address(call.points),
        "weights": _native.address(call.weights),
        "value_dtype": _native.dtype_code(call.value),
        "points_dtype": _native.dtype_code(call.points),
        "weights_dtype": _native.dtype_code(call.weights),
        "value_strides": row_strides(call.value),
        "points_strides": row_strides(call.points),
        "weights_strides": row_strides(call.weights),
        "value_shape": list(call.value.shape),
        "queries": call.points.shape[1],
        "num_points": call.points.shape[4],
        "level_hw": _native.flat(call.level_hw),
        "query_hw": _native.flat(call.query_hw),
    }
