# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A call in, the arguments of a compiled launcher out; shared by the cpu and cuda backends."""

from typing import Any

from ...native import extension
from ...native.tensors import row_strides
from ._call import Call


def arguments(call: Call) -> dict[str, Any]:
    """Return the launcher arguments that describe a call of dense rows."""
    return {
        "value": call.value,
        "points": call.points,
        "weights": call.weights,
        "value_dtype": extension.dtype_code(call.value),
        "points_dtype": extension.dtype_code(call.points),
        "weights_dtype": extension.dtype_code(call.weights),
        "value_strides": row_strides(call.value),
        "points_strides": row_strides(call.points),
        "weights_strides": row_strides(call.weights),
        "value_shape": list(call.value.shape),
        "queries": call.points.shape[1],
        "num_points": call.points.shape[4],
        "level_hw": extension.flat(call.level_hw),
        "query_hw": extension.flat(call.query_hw),
    }
