# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A call in, the arguments of its launchers out."""

from typing import Any

from torch import Tensor

from ...native import extension
from ._call import Call


def arguments(call: Call, out: Tensor) -> dict[str, Any]:
    """Return what both launchers are told; hold the tensors until the launch returns."""
    return {
        "qkv": call.qkv,
        "qkv_strides": call.qkv.stride()[:2],
        "dtype": extension.DTYPE_CODES[call.qkv.dtype],
        "qkv_shape": (*call.qkv.shape[:2], *call.qkv.shape[3:]),
        "hw": tuple(call.hw),
        "tables": call.tables.contiguous(),
        "is_inverse": call.is_inverse,
        "out": out,
        "out_strides": out.stride()[:2],
    }
