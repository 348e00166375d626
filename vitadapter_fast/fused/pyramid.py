# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The feature pyramid, summed where its largest map lies, with constant norms in the weights."""

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..native import extension, gemm, half_linear, tensors, token_rows
from ._choice import touched_reason
from .form import product_dtypes
from .maps import map_to_tokens, tokens_to_map, widened
from .norm import as_affine, is_constant, normalize
from .product import double, is_product, taps
from .resize import resize, shares

# Of a product that is added to the largest map while it is in the cache.
_PIECE_BYTES = 8 * 2**20


class _Layout(NamedTuple):
    """Of the maps that come out.

    Attributes:
        memory_format: As they lie in memory.
        is_written_at_once: Whether constant norms write it: a pass less on GPUs.
    """

    memory_format: torch.memory_format
    is_written_at_once: bool


def unsupported_reason(model: Any) -> str | None:
    """Return why a ``ViTAdapter`` calls the layers of its pyramid, or None."""
    return touched_reason(model, "up", "norm1", "norm2", "norm3", "norm4")


def forward(model: Any, maps: Sequence[Tensor], vit_maps: Sequence[Tensor]) -> list[Tensor]:
    """Return what a ``ViTAdapter`` makes of its prior's maps and the ViT's; all channels last."""
    at_4, at_8, _, _ = maps
    norms = (model.norm1, model.norm2, model.norm3, model.norm4)
    layout = _Layout(
        torch.channels_last if model.has_channels_last else torch.contiguous_format,
        # On the CPU ``_relaid`` is the faster way, and compilers fuse both.
        not (torch.is_grad_enabled() or tensors.is_recorded() or tensors.is_on_cpu(at_4)),
    )
    vit_map = vit_maps[0] if vit_maps else None
    low, wide = product_dtypes(at_8, model.up.weight) or (at_8.dtype, at_8.dtype)
    if _sum_reason(model.up, at_4, at_8, wide) is None:
        # Nobody else has seen this map, unless by a hook.
        is_ours = touched_reason(model, "spm") is None
        is_half = wide is not low and gemm.is_half(at_8, low)
        # As the layers give it: these add the map of the ViT, and a constant norm its float32.
        others = [] if vit_map is None else [vit_map]
        others += [norms[0].weight] if is_constant(norms[0]) else []
        out_dtype = low
        for other in others:
            out_dtype = torch.promote_types(out_dtype, other.dtype)
        total = widened(at_4, wide) if at_4.dtype != wide else at_4.to(wide, copy=not is_ours)
        with nullcontext() if wide is low else tensors.without_autocast():
            first = _largest(
                total, at_8, vit_map, model.up, norms[0], layout, is_half, out_dtype
            ).to(out_dtype)
    else:
        first = _normalized(_sum(double(at_8, model.up) + at_4, vit_map), norms[0], layout)
    rest = [
        _normalized(_sum(level, vit_maps[index] if vit_maps else None), norms[index], layout)
        for index, level in enumerate(maps[1:], 1)
    ]
    return [first, *rest]


def _sum(level: Tensor, vit_map: Tensor | None) -> Tensor:
    """Return level + resized vit_map."""
    if vit_map is None:
        return level
    if torch.compiler.is_compiling() or vit_map.shape[2:] == level.shape[2:]:
        return level + resize(vit_map, level.shape[2:])
    return resize(vit_map, level.shape[2:]).add_(level)


def _normalized(level: Tensor, norm: nn.Module, layout: _Layout) -> Tensor:
    if not is_constant(norm):
        return normalize(norm, level, memory_format=layout.memory_format)
    scale, shift = (part[:, None, None] for part in as_affine(norm))
    if not layout.is_written_at_once:
        return _relaid(torch.addcmul(shift, level, scale), layout.memory_format)
    dtype = torch.promote_types(level.dtype, scale.dtype)
    out = torch.empty_like(level, dtype=dtype, memory_format=layout.memory_format)
    return torch.addcmul(shift, level, scale, out=out)


def _sum_reason(up: Any, at_4: Tensor, at_8: Tensor, wide: torch.dtype) -> str | None:
    """Return why the largest map is not summed where it lies, in a dtype, or None."""
    if tensors.is_recorded():
        return "a compiler or tracer records it"
    if type(at_4) is not Tensor or not tensors.is_on_cpu(at_4):
        return "only on the CPU it is worth it"
    if wide not in (torch.float32, torch.float64):
        return f"it sums float32 or float64, not {wide}"
    if not is_product(up, nn.ConvTranspose2d, 2):
        return "its transposed convolution is not the original's"
    if any(torch.promote_types(part.dtype, wide) != wide for part in (at_4, at_8, up.weight)):
        return f"a map or weight is wider than {wide}"
    if at_4.numel() == 0 or not at_4.is_contiguous(memory_format=torch.channels_last):
        return "the map at 1/4 is empty or lies otherwise in memory"
    return None


def _largest(
    at_4: Tensor,
    at_8: Tensor,
    vit_map: Tensor | None,
    up: Any,
    norm: nn.Module,
    layout: _Layout,
    is_half: bool,
    dtype: torch.dtype,
) -> Tensor:
    """Return norm(up(at_8) + at_4 + resized vit_map), summed in the memory of ``at_4``.

    The map at 1/4 has three quarters of all pixels, and each new buffer of its size costs more than
    the arithmetic on it.
    """
    if is_constant(norm) and not torch.is_grad_enabled():
        scale, shift = (part.to(at_4.dtype) for part in as_affine(norm))
        bias = torch.addcmul(shift, up.bias, scale)
        vit_map = None if vit_map is None else vit_map * scale[:, None, None]
        total = _summed(at_4, scale, at_8, up.weight, bias, vit_map, is_half)
        return _relaid(total, layout.memory_format, dtype)
    inputs = at_4, at_8, up.weight, up.bias, vit_map, is_half
    total = _LargestSum.apply(*inputs)  # type: ignore[no-untyped-call]
    return _normalized(total.to(up.weight.dtype), norm, layout)


def _summed(
    at_4: Tensor,
    scale: Tensor | None,
    at_8: Tensor,
    weight: Tensor,
    bias: Tensor,
    vit_map: Tensor | None,
    is_half: bool,
) -> Tensor:
    """Return scale * (at_4 + kernels of at_8) + bias + resized vit_map, in ``at_4``.

    The 2 x 2 kernels are those of a transposed convolution; both of a row are copied at once, not
    all four, which for g are 36 MiB.
    """
    B, C, h, w = at_8.shape
    if not is_half:
        at_8, weight, bias = (each.to(at_4.dtype) for each in (at_8, weight, bias))
    multiply = partial(half_linear.linear, dtype=at_4.dtype) if is_half else gemm.linear
    bias = bias.repeat(2)
    step = max(1, _PIECE_BYTES // (w * 2 * C * at_4.element_size()))  # rows of at_8
    pixels = at_4.permute(0, 2, 3, 1).view(B, h, 2, w, 2, -1)
    tokens_8, copy = map_to_tokens(at_8), at_4.new_empty((2, at_4.shape[1], C))
    matrix = copy.view(-1, C)
    for images, kernels in zip(pixels.unbind(2), weight.permute(2, 3, 1, 0), strict=True):
        if scale is None:
            copy.copy_(kernels)
        else:
            torch.mul(kernels, scale[:, None], out=copy)
        for image, tokens in zip(images, tokens_8, strict=True):
            for first in range(0, h, step):
                product = multiply(tokens[first * w : (first + step) * w], matrix, bias)
                target = image[first : first + step]
                product = product.view(target.shape)
                if scale is None:
                    target.add_(product)
                else:
                    torch.addcmul(product, target, scale, out=target)
    if vit_map is not None:
        _add_resized(at_4, vit_map.to(at_4.dtype))
    return at_4


def _relaid(
    level: Tensor, memory_format: torch.memory_format, dtype: torch.dtype | None = None
) -> Tensor:
    """Return a map that is channels last in another format; there a float32 one may be rounded."""
    if memory_format == torch.channels_last or level.requires_grad or not token_rows.is_ours(level):
        return level.contiguous(memory_format=memory_format)
    dtype = dtype if dtype is torch.bfloat16 else level.dtype
    out = torch.empty_like(level, dtype=dtype, memory_format=memory_format)
    extension.in_huge_pages(out)
    for rows, planes in zip(map_to_tokens(level), out, strict=True):
        token_rows.transpose(rows, planes)
    return out


class _LargestSum(torch.autograd.Function):
    """A map, channels last, plus a 2 x 2 transposed convolution and a resized map, in place."""

    @staticmethod
    def forward(
        ctx: Any,
        at_4: Tensor,
        at_8: Tensor,
        weight: Tensor,
        bias: Tensor,
        vit_map: Tensor | None,
        is_half: bool,
    ) -> Tensor:
        ctx.save_for_backward(at_8, weight)
        ctx.is_half = is_half
        ctx.vit_shape = None if vit_map is None else vit_map.shape
        ctx.mark_dirty(at_4)
        return _summed(at_4, None, at_8, weight, bias, vit_map, is_half)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        at_8, weight = ctx.saved_tensors
        _, needs_8, needs_weight, needs_bias, needs_vit, _ = ctx.needs_input_grad
        grad = grad.contiguous(memory_format=torch.channels_last)
        grad_8 = grad_weight = grad_bias = None
        if ctx.is_half:
            needs = needs_8, needs_weight or needs_bias
            grad_8, grad_weight, grad_bias = _half_gradients(grad, at_8, weight, *needs)
        else:
            at_8, weight = at_8.to(grad.dtype), weight.to(grad.dtype)
            grad_8 = F.conv2d(grad, weight, stride=2) if needs_8 else None
            grad_weight = _up_weight_gradient(grad, at_8) if needs_weight else None
            grad_bias = grad.sum((0, 2, 3)) if needs_bias else None
        grad_vit = None
        if needs_vit:
            sizes = grad.shape[2:], ctx.vit_shape
            grad_vit = torch.ops.aten.upsample_bilinear2d_backward(grad, *sizes, False)
        return grad, grad_8, grad_weight, grad_bias, grad_vit, None


def _half_gradients(
    grad: Tensor, at_8: Tensor, weight: Tensor, needs_8: bool, needs_parameters: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of the transposed convolution's map, kernels and bias, as needed.

    In two products of 16 bits, with the four pixels that one became side by side: 25 ms for 384
    channels and [64, 64], tap by tap in float32 45 (2-core Intel Xeon, model 207).
    """
    grad_8 = grad_weight = grad_bias = None
    if not (needs_8 or needs_parameters):
        return grad_8, grad_weight, grad_bias
    B, C, H, W = grad.shape
    pixels = grad.permute(0, 2, 3, 1).view(B, H // 2, 2, W // 2, 2, C).transpose(2, 3)
    rows = torch.empty_like(pixels, dtype=at_8.dtype, memory_format=torch.contiguous_format)
    rows = rows.copy_(pixels).view(-1, 4 * C)
    tokens = map_to_tokens(at_8)
    if needs_8:
        back = half_linear.linear(rows, taps(weight).t(), dtype=at_8.dtype)
        grad_8 = tokens_to_map(back.view(tokens.shape), (H // 2, W // 2))
    if needs_parameters:
        product, sums = half_linear.weight_gradient(rows, tokens.flatten(0, 1), dtype=weight.dtype)
        grad_weight = product.view(2, 2, C, -1).permute(3, 2, 0, 1)
        grad_bias = sums.view(4, C).sum(0)
    return grad_8, grad_weight, grad_bias


def _up_weight_gradient(grad: Tensor, at_8: Tensor) -> Tensor:
    """Return the gradient of the 2 x 2 kernels, [C, C, 2, 2], tap by tap.

    torch's takes three times as long, 40 ms for 384 channels and [64, 64] (2-core AMD EPYC).
    """
    rows = map_to_tokens(at_8).flatten(0, 1)
    taps = [
        gemm.weight_gradient(rows, grad[:, :, y::2, x::2].permute(0, 2, 3, 1).flatten(0, 2))
        for y in range(2)
        for x in range(2)
    ]
    return torch.unflatten(torch.stack(taps, dim=-1), -1, (2, 2))


def _add_resized(total: Tensor, small: Tensor) -> None:
    """Add ``small``, [B, C, h, w], resized bilinearly, to ``total``, [B, C, H, W], channels last.

    Along the rows by F.interpolate, which would need memory for all; along the columns as a matrix
    product, which adds in place.
    """
    B, C, H, W = total.shape
    h = small.shape[2]
    wide = F.interpolate(small, (h, W), mode="bilinear", align_corners=False)
    weights = shares(H, h, total).expand(B, H, h)
    rows = total.permute(0, 2, 3, 1).view(B, H, W * C)
    rows.baddbmm_(weights, wide.permute(0, 2, 3, 1).reshape(B, h, W * C))
