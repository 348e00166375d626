# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A call in; its sizes, matrices and GEMM gradients out: shared by the compiled backends."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...native import extension, gemm
from ._call import Call, result_dtype

_MAX_INT32 = 2**31 - 1
_ANTIALIASED = "bicubic_antialias"


class Axis(NamedTuple):
    """One axis of a bicubic resize: output i lies at input (i + 1/2) * num / den - 1/2.

    Attributes:
        inputs: Rows (or columns) of the table.
        outputs: Rows (or columns) of the token grid.
        num: See above.
        den: See above.
        unit: Half the cubic kernel is two of these wide, in units of 1 / den of an input: it widens
            with the outputs under antialias, and spans two inputs otherwise.
        input_radius: How many inputs an output reaches to either side, rounded up.
        output_radius: The same for the outputs that an input reaches.
    """

    inputs: int
    outputs: int
    num: int
    den: int
    unit: int
    input_radius: int
    output_radius: int


def axes(call: Call) -> tuple[Axis, Axis]:
    """Return the resize of rows and of columns."""
    pos_hw, grid_hw = tuple(call.pos_hw), call.grid_hw
    y, x = (
        _axis(call.mode, *sizes, pos_hw == grid_hw) for sizes in zip(pos_hw, grid_hw, strict=True)
    )
    return y, x


def _axis(mode: str, inputs: int, outputs: int, is_identity: bool) -> Axis:
    num, den = inputs, outputs
    # DINOv2 adds 0.1 to the grid so that float rounding cannot lose a row; checkpoints saw it.
    if mode == "bicubic_offset" and not is_identity:
        num, den = 10 * inputs, 10 * outputs + 1
    unit = max(num, den) if mode == _ANTIALIASED else den
    return Axis(inputs, outputs, num, den, unit, -(-2 * unit // den), -(-2 * unit // num))


def is_antialiased(call: Call) -> bool:
    """Return whether the table is resized with antialias."""
    return call.mode == _ANTIALIASED


def size_reason(call: Call) -> str | None:
    """Return why a call is too large for the kernels' 32-bit indices, or None."""
    h, w = call.grid_hw
    C = call.weight.shape[0]
    indices = [h * w * C, call.pos_embed.numel(), call.image.shape[0]]
    for axis in axes(call):
        sizes, factors = (axis.inputs, axis.outputs), (axis.num, axis.den)
        indices += [(2 * size + 5) * factor for size in sizes for factor in factors]
    # Each by itself: a compiler would compile again wherever another of them is the largest.
    too_large = [index for index in indices if index > _MAX_INT32]
    return f"it takes indices up to {_MAX_INT32}, got {max(too_large)}" if too_large else None


def patches(call: Call) -> Tensor:
    """Return a view of the image's patches, [B, h, w, I, p, p]."""
    patch_h, patch_w = call.weight.shape[2:]
    cut = call.image.unfold(2, patch_h, patch_h).unfold(3, patch_w, patch_w)
    return cut.permute(0, 2, 3, 1, 4, 5)


def columns(call: Call) -> Tensor:
    """Return the patches as rows of a matrix, [B * h * w, I * p * p]."""
    cut = patches(call)
    return cut.contiguous().view(cut.shape[:3].numel(), cut.shape[3:].numel())


def kernel_matrix(call: Call) -> Tensor:
    """Return the patch kernel as [C, I * p * p]."""
    return call.weight.reshape(call.weight.shape[0], -1)


def add_positions(launcher: str, call: Call, tokens: Tensor, **runtime: Any) -> Tensor:
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
    _resize_add(
        launcher, call, table.contiguous(), tokens, bias, out, is_transposed=False, **runtime
    )
    return out.view(B, h * w, C)


def batch_sum(grad_out: Tensor) -> Tensor:
    """Return the gradient of the positions, [h * w, C] in the type it is computed in."""
    return grad_out.sum(0, dtype=torch.promote_types(grad_out.dtype, torch.float32))


def table_gradient(launcher: str, call: Call, grad_out: Tensor, **runtime: Any) -> Tensor:
    """Return the gradient of the position table: the transposed taps, gathered in a fixed order."""
    total = batch_sum(grad_out)
    dtype = call.pos_embed.dtype
    kept = total.dtype if torch.float64 in (total.dtype, dtype) else dtype
    grad = total.new_empty(call.pos_embed.shape, dtype=kept)
    _resize_add(launcher, call, total, None, None, grad, is_transposed=True, **runtime)
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
    **runtime: Any,
) -> None:
    y, x = axes(call)
    extension.launch(
        launcher,
        source=source,
        tokens=tokens,
        bias=bias,
        out=out,
        source_dtype=extension.DTYPE_CODES[source.dtype],
        tokens_dtype=extension.DTYPE_CODES[(source if tokens is None else tokens).dtype],
        out_dtype=extension.DTYPE_CODES[out.dtype],
        y=y,
        x=x,
        is_antialiased=is_antialiased(call),
        is_transposed=is_transposed,
        batch=1 if is_transposed else call.image.shape[0],
        channels=call.weight.shape[0],
        **runtime,
    )


def gradients(
    call: Call,
    grad_out: Tensor,
    needs: Sequence[bool],
    columns_of: Callable[[Call], Tensor],
    table: Callable[[Call, Tensor], Tensor],
) -> list[Tensor | None]:
    """Return the gradients of image, weight, bias and table; None where ``needs`` says so.

    Args:
        call: The call of the forward.
        grad_out: [B, h * w, C].
        needs: Which gradients are wanted.
        columns_of: Makes the patch matrix, [B * h * w, I * p * p].
        table: Makes the gradient of the table from the call and ``grad_out``.
    """
    needs_image, needs_weight, needs_bias, needs_table = needs
    C = call.weight.shape[0]
    # The GEMMs read whole matrices; a cotangent that autograd expanded or transposed is copied.
    grad = grad_out.reshape(-1, C).to(call.image.dtype).contiguous()
    image = _image_gradient(call, grad) if needs_image else None
    weight = None
    if needs_weight:
        weight = gemm.weight_gradient(grad, columns_of(call)).view(call.weight.shape)
    bias = grad_out.sum((0, 1)).to(call.image.dtype) if needs_bias else None
    return [image, weight, bias, table(call, grad_out) if needs_table else None]


def _image_gradient(call: Call, grad: Tensor) -> Tensor:
    """Lay the gradients of the patches side by side; patches do not overlap."""
    image = call.image
    rows = gemm.linear(grad, kernel_matrix(call).t())
    result = image.new_zeros(image.shape)
    cut = patches(call._replace(image=result))
    cut.copy_(rows.view(cut.shape))
    return result
