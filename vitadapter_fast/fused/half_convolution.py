# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Maps in, convolutions in products of 16 bits out, with their gradients.

On processors without fast products of bfloat16 oneDNN takes twice as long for such a convolution as
in float32, and for its gradients: 64 channels of [256, 256] 28 and 63 ms (Intel Xeon, model 207).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..native import gemm, half_conv, half_linear
from .form import product_dtypes
from .maps import widened


def half_dtype(level: Tensor, weight: Tensor) -> torch.dtype | None:
    """Return the dtype of a convolution whose products have a kernel here, or None."""
    dtypes = product_dtypes(level, weight)
    return dtypes[0] if dtypes is not None and gemm.is_half(level, dtypes[0]) else None


def has_halves(conv: nn.Conv2d) -> bool:
    """Return whether a convolution of 3 x 3 pixels, padded by one, has a kernel here."""
    return conv.in_channels % half_conv.CHANNELS == 0 and conv.stride in ((1, 1), (2, 2))


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    dtype: torch.dtype,
    *,
    has_relu: bool = False,
) -> Tensor:
    """Return a convolution of 3 x 3 pixels that ``has_halves``, channels last.

    Args:
        x: [B, K, H, W].
        weight: [C, K, 3, 3].
        bias: [C] or None.
        stride: 1 or 2.
        dtype: Of the result where gradients are recorded; otherwise it is of float32.
        has_relu: Whether ReLU of the result is returned.
    """
    if torch.is_grad_enabled():
        result: Tensor = _Conv.apply(x, weight, bias, stride, dtype)  # type: ignore[no-untyped-call]
        return result.relu() if has_relu else result
    return half_conv.conv(x, weight, bias, stride, has_relu=has_relu)


def multiply(rows: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return ``rows @ weight.T + bias``: a convolution of one pixel.

    Args:
        rows: Pixels, [N, K].
        weight: [C, K].
        bias: [C] or None.
        dtype: Of the result.
    """
    result: Tensor = _Product.apply(rows, weight, bias, dtype)  # type: ignore[no-untyped-call]
    return result


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        ctx.save_for_backward(rows, weight, bias)
        return half_linear.linear(rows, weight, bias, dtype=dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, bias = ctx.saved_tensors
        needs_rows, needs_weight, needs_bias, _ = ctx.needs_input_grad
        grad_rows = grad_weight = grad_bias = None
        if needs_rows:
            grad_rows = half_linear.linear(grad, weight.t(), dtype=rows.dtype)
        if needs_weight or needs_bias:
            product, sums = half_linear.weight_gradient(grad, rows, dtype=weight.dtype)
            grad_weight = product if needs_weight else None
            grad_bias = sums.to(bias.dtype) if needs_bias else None
        return grad_rows, grad_weight, grad_bias, None


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, dtype: torch.dtype
    ) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        ctx.stride = stride
        return half_conv.conv(x, weight, bias, stride, has_relu=False, dtype=dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        grad_x = grad_weight = grad_bias = None
        # With stride 1 the gradient of the map is a convolution as well, with the kernels turned.
        is_conv = ctx.stride == 1 and weight.shape[0] % half_conv.CHANNELS == 0
        if needs_x and is_conv:
            turned = weight.transpose(0, 1).flip(2, 3)
            grad_x = half_conv.conv(grad, turned, None, 1, has_relu=False, dtype=x.dtype)
        if needs_x and not is_conv:
            maps = (
                each.contiguous(memory_format=torch.channels_last) for each in (grad, x, weight)
            )
            wide = [
                each if each.dtype is torch.float32 else widened(each, torch.float32)
                for each in maps
            ]
            how = [ctx.stride] * 2, [1, 1], [1, 1], False, [0, 0], 1
            grad_x, *_ = torch.ops.aten.convolution_backward(
                *wide, None, *how, [True, False, False]
            )
            grad_x = grad_x.to(x.dtype)
        if needs_weight:
            grad_weight = half_conv.weight_gradient(grad, x, ctx.stride, dtype=weight.dtype)
        if needs_bias:
            grad_bias = grad.sum((0, 2, 3), dtype=torch.float32).to(bias.dtype)
        return grad_x, grad_weight, grad_bias, None, None
