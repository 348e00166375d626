# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""One Triton kernel from image to tokens: neither the patch matrix nor the resized table exists."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _triton
from .._triton import Config
from . import _parts
from ._call import Call, new_outputs, result_dtype

# Tokens of a program and its warps, by bytes of an element of the image; channels and the step
# through a patch are 64 and 32. A table has 4 x 4 taps but where antialias shrinks it.
_CONFIGS = {2: Config(64, 4, 3), 4: Config(32, 4, 2), 8: Config(32, 4, 1)}
_CHANNELS = 64
_STEP = 32
_TABLE_ROWS = 16


def unsupported_reason(call: Call) -> str | None:
    """Return why the Triton kernels cannot run this call, or None."""
    if (reason := _triton.unsupported_reason(call.image)) is not None:
        return reason
    if result_dtype(call) == torch.float64 and (reason := _triton.float64_reason()):
        return reason
    return _parts.size_reason(call)


def forward(call: Call) -> Tensor:
    """Return the tokens, [B, h * w, C] in the promoted dtype of image and table."""
    from ._triton_kernels import embed_kernel

    image = call.image
    B, (h, w) = image.shape[0], call.grid_hw
    # Ints: under a compiler sizes may be symbols, and these are compiled into the kernel.
    C, in_chans, patch_h, patch_w = map(int, call.weight.shape)
    stride_b, stride_i, stride_y, stride_x = image.stride()
    # What the kernel walks through row by row; parameters are dense but for odd formats.
    weight, table = call.weight.contiguous(), call.pos_embed.contiguous()
    bias = None if call.bias is None else call.bias.contiguous()
    out = new_outputs(call)
    # A float64 table makes the sum float64.
    is_double = out.dtype == torch.float64

    def run(config: Config) -> None:
        rows = max(16, config.rows)  # the least that matrix units take
        _triton.launch(
            embed_kernel,
            grid=(-(-B * h * w // rows), -(-C // _CHANNELS)),
            image=image,
            weight=weight,
            # Compilers that trace a launch want a tensor where the kernel uses none.
            bias=weight if bias is None else bias,
            table=table,
            out=out,
            stride_b=stride_b,
            stride_i=stride_i,
            stride_y=stride_y,
            tokens=B * h * w,
            h=h,
            w=w,
            C=C,
            **_resize(call),
            K=in_chans * patch_h * patch_w,
            PATCH_H=patch_h,
            PATCH_W=patch_w,
            STRIDE_X=int(stride_x),
            HAS_BIAS=bias is not None,
            # The interpreter would multiply the bits of bfloat16.
            WIDENS=is_double or _triton.is_interpreted(),
            PRECISION=_triton.dot_precision(torch.float64 if is_double else image.dtype),
            BM=rows,
            BN=_CHANNELS,
            BK=_STEP,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )

    key = ("patch_embed", image.device, image.dtype, C, in_chans, patch_h, patch_w)
    with _triton.current_device(image):
        _triton.run_configured(key, _CONFIGS[image.element_size()], run, width=_CHANNELS)
    return out


def backward(call: Call, grad_out: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
    """Return the gradients of image, weight, bias and table; None where ``needs`` says so."""
    return _parts.gradients(call, grad_out, needs, _parts.columns, _table_gradient)


def _table_gradient(call: Call, grad_out: Tensor) -> Tensor:
    from ._triton_kernels import table_gradient_kernel

    total = _parts.batch_sum(grad_out)
    grad = total.new_empty(call.pos_embed.shape, dtype=call.pos_embed.dtype)
    (h, w), C = call.grid_hw, call.weight.shape[0]
    y, x = _parts.axes(call)
    with _triton.current_device(grad):
        _triton.launch(
            table_gradient_kernel,
            grid=(-(-grad.shape[0] // _TABLE_ROWS), -(-C // _CHANNELS)),
            grad=total,
            out=grad,
            h=h,
            w=w,
            C=C,
            y_reach=y.output_radius,
            x_reach=x.output_radius,
            **_resize(call),
            BM=_TABLE_ROWS,
            BN=_CHANNELS,
            num_warps=4,
            num_stages=1,
        )
    return grad


def _resize(call: Call) -> dict[str, int | bool]:
    sizes = {
        f"{name}_{field}": size
        for name, axis in zip("yx", _parts.axes(call), strict=True)
        for field, size in (
            ("inputs", axis.inputs),
            ("num", axis.num),
            ("den", axis.den),
            ("unit", axis.unit),
            ("radius", axis.input_radius),
        )
    }
    return {**sizes, "ANTIALIAS": _parts.is_antialiased(call)}
