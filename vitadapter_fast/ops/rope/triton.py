# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The Triton kernel: _triton_kernels.py."""

from typing import Any

from torch import Tensor

from .. import _triton
from .._triton import Config
from ._call import Call, new_outputs

_MAX_AXIS = 65535  # of the second and third axis of a launch
_MAX_INT32 = 2**31 - 1


def unsupported_reason(call: Call) -> str | None:
    """Return why the Triton kernel cannot run this call, or None."""
    if (reason := _triton.unsupported_reason(call.qkv)) is not None:
        return reason
    B, N, _, M, _ = call.qkv.shape
    if max(B, 3 * M) > _MAX_AXIS:
        return f"it takes at most {_MAX_AXIS} images, and a third of it heads, got {B} and {M}"
    if max(N, call.tables.numel()) > _MAX_INT32:
        return f"it takes at most {_MAX_INT32} tokens and elements of the tables"
    return None


def forward(call: Call) -> Tensor:
    """Return queries, keys and values, [B, N, 3, M, D], of which the first two are rotated."""
    out = new_outputs(call)
    _run(call, _triton.rows("qkv", call.qkv), _triton.rows("out", out), is_copied=True)
    return out


def rotate_in_place(call: Call) -> None:
    """Rotate queries and keys, dense from their third dimension on, where they lie."""
    qkv, out = _triton.rows("qkv", call.qkv), _triton.rows("out", call.qkv)
    assert qkv["qkv"] is call.qkv
    _run(call, qkv, out, is_copied=False)


def _run(call: Call, qkv: dict[str, Any], out: dict[str, Any], *, is_copied: bool) -> None:
    from ._triton_kernels import CONFIG, rope_kernel

    B, N, _, M, D = call.qkv.shape
    (h, w), half = call.hw, int(D) // 2
    padded = 1 << max(half - 1, 1).bit_length()
    tables = call.tables.contiguous()

    def run(config: Config) -> None:
        tokens = N if is_copied else h * w
        _triton.launch(
            rope_kernel,
            # -(-a // b) is the ceiling of a / b.
            grid=(-(-tokens // config.rows), (3 if is_copied else 2) * int(M), B),
            **qkv,
            **out,
            tables=tables,
            tokens=tokens,
            h=h,
            w=w,
            ROTATED=2 * int(M),
            HALF=half,
            HALF_PAD=padded,
            SIGN=-1.0 if call.is_inverse else 1.0,
            IS_COPIED=is_copied,
            ROWS=config.rows,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )

    with _triton.current_device(out["out"]):
        key = ("rope", call.qkv.device, call.qkv.dtype, int(D))
        _triton.run_configured(key, CONFIG, run, width=2 * padded)
