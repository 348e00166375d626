# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A call in, the arguments of a compiled launcher out; shared by the cpu and cuda backends."""

from typing import Any

from ...native import extension
from ._call import Call


def arguments(call: Call) -> dict[str, Any]:
    """Return the launcher arguments that describe a dense call."""
    return {
        "tokens": call.tokens,
        "weight": call.weight,
        "bias": call.bias,
        "dtype": extension.DTYPE_CODES[call.tokens.dtype],
        "tokens_strides": call.tokens.stride()[:2],
        "tokens_shape": list(call.tokens.shape),
        "grid_hw": list(call.grid_hw),
    }
