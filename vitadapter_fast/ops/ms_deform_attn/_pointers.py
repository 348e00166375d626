# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A call in, the arguments of a compiled launcher out; shared by the cpu and cuda backends."""

from typing import Any

from ...native import extension
from ._call import Call


def arguments(call: Call) -> dict[str, Any]:
    """Return the launcher arguments that describe a call of dense rows."""
    return {
        "value": call.value,
        "points": call.points,
        "weights": call.weights,
        "value_dtype": extension.DTYPE_CODES[call.value.dtype],
        "points_dtype": extension.DTYPE_CODES[call.points.dtype],
        "weights_dtype": extension.DTYPE_CODES[call.weights.dtype],
        "value_strides": call.value.stride()[:2],
        "points_strides": call.points.stride()[:2],
        "weights_strides": call.weights.stride()[:2],
        "value_shape": list(call.value.shape),
        "queries": call.points.shape[1],
        "num_points": call.points.shape[4],
        "level_hw": list(call.level_hw),
        "query_hw": list(call.query_hw),
    }
