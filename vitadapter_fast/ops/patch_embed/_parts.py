# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A call in; its sizes, matrices and GEMM gradients out: shared by the compiled backends."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _gemm, _native
from ._call import Call

_MAX_INT32 = 2**31 - 1

Axis = tuple[int, int, int, int]


def axes(call: Call) -> tuple[Axis, Axis]:
    """Return (inputs, outputs, num, den) of the rows and columns of the table.

    Output i lies at input coordinate (i + 1/2) * num / den - 1/2.
    """
    return axis(call, 0), axis(call, 1)


def axis(call: Call, dim: int) -> Axis:
    """Return the resize of one axis; see ``axes``."""
    inputs, outputs = int(call.pos_hw[dim]), int(call.grid_hw[dim])
    # DINOv2 adds 0.1 to the grid so that float rounding cannot lose a row; checkpoints saw it.
    if call.mode == "bicubic_offset" and tuple(call.pos_hw) != call.grid_hw:
        return inputs, outputs, 10 * inputs, 10 * outputs + 1
    return inputs, outputs, inputs, outputs


def size_reason(call: Call) -> str | None:
    """Return why a call is too large for the kernels' 32-bit indices, or None."""
    h, w = call.grid_hw
    C = call.weight.shape[0]
    coordinates = (
        (2 * max(inputs, outputs) + 5) * max(num, den) for inputs, outputs, num, den in axes(call)
    )
    largest = max(*coordinates, h * w * C, call.pos_embed.numel(), call.image.shape[0])
    return f"it takes indices up to {_MAX_INT32}, got {largest}" if largest > _MAX_INT32 else None


def result_dtype(call: Call) -> torch.dtype:
    """Return the dtype of the tokens with positions."""
    return torch.promote_types(call.image.dtype, call.pos_embed.dtype)


def patches(call: Call) -> Tensor:
    """Return a view of the image's patches, [B, h, w, I, p, p]."""
    patch_h, patch_w = call.weight.shape[2:]
    cut = call.image.unfold(2, patch_h, patch_h).unfold(3, patch_w, patch_w)
    return cut.permute(0, 2, 3, 1, 4, 5)


def kernel_matrix(call: Call) -> Tensor:
    """Return the patch kernel as [C, I * p * p]."""
    return call.weight.reshape(call.weight.shape[0], -1)


def add_positions(launcher: str, call: Call, tokens: Tensor, **place: Any) -> Tensor:
    """Return tokens [B * h * w, C] with bias and resized positions added, [B, h * w, C]."""
    dtype = result_dtype(call)
    h, w = call.grid_hw
    B, C = call.image.shape[0], call.weight.shape[0]
    # A table narrower than its image, or float64 on one side only: rare, and exact this way.
    table = call.pos_embed.to(dtype)
    bias = call.bias
    if dtype == torch.float64:
        tokens = tokens.to(dtype)
        bias = bias if bias is None else bias.to(dtype)
    # Bias and table are a few kilobytes to megabytes; slices of a state dict come dense.
    bias = bias if bias is None else bias.contiguous()
    out = tokens if tokens.dtype == dtype else tokens.new_empty(tokens.shape, dtype=dtype)
    _resize_add(launcher, call, table.contiguous(), tokens, bias, out, is_transposed=False, **place)
    return out.view(B, h * w, C)


def table_gradient(launcher: str, call: Call, grad_out: Tensor, **place: Any) -> Tensor:
    """Return the gradient of the position table: the transposed taps, gathered in a fixed order."""
    compute = torch.promote_types(grad_out.dtype, torch.float32)
    total = grad_out.sum(0, dtype=compute)  # [h * w, C]
    dtype = call.pos_embed.dtype
    kept = dtype if compute == torch.float32 and dtype != torch.float64 else compute
    grad = total.new_empty(call.pos_embed.shape, dtype=kept)
    _resize_add(launcher, call, total, None, None, grad, is_transposed=True, **place)
    return grad.to(dtype)


def _resize_add(
    launcher: str,
    call: Call,
    source: Tensor,
    tokens: Tensor | None,
    bias: Tensor | None,
    out: Tensor,
    *,
    is_transposed: bool,
    **place: Any,
) -> None:
    y, x = axes(call)
    _native.launch(
        launcher,
        source=_native.address(source),
        tokens=_native.address(tokens),
        bias=_native.address(bias),
        out=_native.address(out),
        source_dtype=_native.dtype_code(source),
        tokens_dtype=_native.dtype_code(source if tokens is None else tokens),
        out_dtype=_native.dtype_code(out),
        y=y,
        x=x,
        is_antialiased=call.mode == "bicubic_antialias",
        is_transposed=is_transposed,
        batch=1 if is_transposed else call.image.shape[0],
        channels=call.weight.shape[0],
        **place,
    )


def gradients(
    call: Call,
    grad_out: Tensor,
    needs: Sequence[bool],
    columns: Callable[[Call], Tensor],
    table: Callable[[Call, Tensor], Tensor],
) -> list[Tensor | None]:
    """Return the gradients of image, weight, bias and table; None where ``needs`` says so.

    Args:
        call: The call of the forward.
        grad_out: [B, h * w, C].
        needs: Which gradients are wanted.
        columns: Makes the patch matrix, [B * h * w, I * p * p].
        table: Makes the gradient of the table from the call and ``grad_out``.
    """
    needs_image, needs_weight, needs_bias, needs_table = needs
    C = call.weight.shape[0]
    # The GEMMs read whole matrices; a cotangent that autograd expanded or transposed is copied.
    grad = grad_out.reshape(-1, C).to(call.image.dtype).contiguous()
    image = _image_gradient(call, grad) if needs_image else None
    weight = None
    if needs_weight:
        weight = _gemm.weight_gradient(grad, columns(call)).view(call.weight.shape)
    bias = grad_out.sum((0, 1)).to(call.image.dtype) if needs_bias else None
    return [image, weight, bias, table(call, grad_out) if needs_table else None]


def _image_gradient(call: Call, grad: Tensor) -> Tensor:
    """Lay the gradients of the patches side by side; patches do not overlap."""
    image = call.image
    columns = _gemm.linear(grad, kernel_matrix(call).t().contiguous())
    result = image.new_zeros(image.shape)
    cut = patches(call._replace(image=result))
    cut.copy_(columns.view(cut.shape))
    return result
