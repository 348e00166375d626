# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels: _triton_kernels.py."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _triton
from .._triton import Config
from ._call import Call, new_outputs

_LARGEST = 65535  # of the second and third axis of a launch
_MAX_WINDOW = 2**30  # sums of two sizes are 32-bit integers
# Wider heads take more than the 99 KiB of shared memory that many GPUs have, and before sm_80 more
# than the 64 KiB of sm_75: 80 KiB at 128 channels in float16.
_MAX_CHANNELS = 256
_MAX_CHANNELS_BELOW_SM_80 = 64


def unsupported_reason(call: Call) -> str | None:
    """Return why the Triton kernels cannot run this call, or None."""
    if (reason := _triton.unsupported_reason(call.qkv)) is not None:
        return reason
    B, _, _, M, D = call.qkv.shape
    if max(B, M) > _LARGEST:
        return f"it takes at most {_LARGEST} images and heads, got {B} and {M}"
    if call.qkv.dtype == torch.float64 and (reason := _triton.float64_reason()) is not None:
        return reason
    is_old = _is_below_sm_80(call.qkv)
    most = _MAX_CHANNELS_BELOW_SM_80 if is_old else _MAX_CHANNELS
    if most < D:
        return f"it takes heads of at most {most} channels here, got {D}"
    if call.window_size == 0:
        return "attention over a whole grid is F.scaled_dot_product_attention's on GPUs"
    if call.window_size > _MAX_WINDOW:
        return f"it takes windows of at most {_MAX_WINDOW} tokens a side, got {call.window_size}"
    return None


def _is_below_sm_80(tensor: Tensor) -> bool:
    found = _triton.capability(tensor.device) if tensor.is_cuda else None
    return found is not None and found < (8, 0)


def forward(call: Call) -> tuple[Tensor, Tensor]:
    """Return the attended tokens, [B, h * w, M * D], and logsumexp of the logits, [B, h * w, M]."""
    from ._triton_kernels import forward_kernel

    out, logsumexp = new_outputs(call)
    tensors = {**_triton.rows("qkv", call.qkv), "out": out, "logsumexp": logsumexp}
    with _triton.current_device(out):
        _launch(forward_kernel, call, tensors)
    return out, logsumexp


def backward(
    call: Call, grad_out: Tensor, needs: Sequence[bool], out: Tensor, logsumexp: Tensor
) -> list[Tensor | None]:
    """Return the gradient of qkv, [B, h * w, 3, M, D]."""
    from ._triton_kernels import key_gradient_kernel, query_gradient_kernel

    grad_qkv = call.qkv.new_empty(call.qkv.shape)
    logsumexp = logsumexp.contiguous()
    tensors = {
        **_triton.rows("qkv", call.qkv),
        **_triton.rows("grad_out", grad_out),
        "logsumexp": logsumexp,
        "products": torch.empty_like(logsumexp),
        "grad_qkv": grad_qkv,
    }
    with _triton.current_device(grad_qkv):
        _launch(query_gradient_kernel, call, {**tensors, "out": out.contiguous()})
        _launch(key_gradient_kernel, call, tensors)
    return [grad_qkv]


def _launch(kernel: Any, call: Call, tensors: dict[str, Any]) -> None:
    from ._triton_kernels import CONFIGS, STEPS, WIDEST

    B, _, _, M, D = call.qkv.shape
    (h, w), size = call.hw, call.window_size
    channels = max(16, 1 << (int(D) - 1).bit_length())
    bytes_each = call.qkv.element_size()
    default, step = CONFIGS[bytes_each], STEPS[bytes_each]
    if channels > WIDEST:
        default, step = default._replace(rows=max(16, default.rows // 2)), max(16, step // 2)

    def run(config: Config) -> None:
        rows = max(16, config.rows)  # the least that matrix units take
        # -(-a // b) is the ceiling of a / b.
        most = min(h, size) * min(w, size)
        blocks = -(-most // rows)
        _triton.launch(
            kernel,
            grid=(-(-h // size) * -(-w // size) * blocks, M, B),
            **tensors,
            h=h,
            w=w,
            window_size=size,
            blocks=blocks,
            M=int(M),
            D=int(D),
            SCALE=float(D) ** -0.5,
            # The interpreter would multiply the bits of bfloat16.
            WIDENS=call.qkv.dtype == torch.float64 or _triton.is_interpreted(),
            PRECISION=_triton.dot_precision(call.qkv.dtype),
            ROWS=rows,
            STEP=step,
            CHANNELS=channels,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )

    name = f"window_attention {kernel.__name__}"
    key = (name, call.qkv.device, call.qkv.dtype, int(D))
    _triton.run_configured(key, default, run, width=channels)
