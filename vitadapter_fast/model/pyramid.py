# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Prior tokens, features at 1/4 and ViT maps in; four feature maps at 1/4 to 1/32 out."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..native import gemm, tensors, token_rows
from .grid import Grids, map_to_tokens, split_prior, tokens_to_map
from .norm import as_affine, is_constant, normalize
from .plain import is_plain


def feature_pyramid(
    c: Tensor,
    at_4: Tensor,
    vit_tokens: Sequence[Tensor],
    grids: Grids,
    up: nn.Module,
    project: nn.Module | None,
    norms: Sequence[nn.Module],
    memory_format: torch.memory_format,
) -> list[Tensor]:
    """Lay the prior tokens out as maps, add the ViT's to them and normalize.

    A function, because upstream keeps ``up`` and the norms at the top of its parameter names.

    Args:
        c: Prior tokens, [B, Q, C].
        at_4: The prior's features at 1/4, [B, I, H / 4, W / 4].
        vit_tokens: ViT tokens [B, h * w, C]: four for the four maps, one for all of them, or none.
        grids: Sizes of the token grids.
        up: Maps [B, C, H / 8, W / 8] to [B, C, H / 4, W / 4].
        project: Maps ``at_4`` to [B, C, H / 4, W / 4]; none where it is mapped.
        norms: A normalization for each map.
        memory_format: That of the results; all before them is channels last.

    Returns:
        Maps [B, C, H / s, W / s] for s = 4, 8, 16, 32.

    Source: Chen et al. 2022, arXiv:2205.08534, section 3.1.
    """
    tokens = zip(split_prior(c, grids), grids.prior_hw, strict=True)
    map_8, map_16, map_32 = (tokens_to_map(part, hw) for part, hw in tokens)
    vit_maps: list[Tensor | None] = [tokens_to_map(part, grids.vit_hw) for part in vit_tokens]
    vit_maps = vit_maps * 4 if len(vit_maps) == 1 else vit_maps or [None] * 4

    if project is not None and _sums_here(map_8, at_4, up, project):
        first = _largest(map_8, at_4, vit_maps[0], up, project, norms[0], memory_format)
    else:
        at_4 = at_4 if project is None else _projected(at_4, project)
        first = _normalized(_sum(_doubled(map_8, up) + at_4, vit_maps[0]), norms[0], memory_format)
    rest = zip((map_8, map_16, map_32), vit_maps[1:], norms[1:], strict=True)
    sums = ((_sum(level, vit_map), norm) for level, vit_map, norm in rest)
    return [first, *(_normalized(total, norm, memory_format) for total, norm in sums)]


# The two convolutions here are matrix products, and while compiling they are called so: of all that
# lies before a convolution, torch's compiler wants the layout of maps, of the ViT's queries and
# keys and the values of the deformable attention too. It then orders strides, and cannot where
# sizes are symbols (torch 2.13, in training: "cannot determine truth value of Relational").


def _is_product(layer: nn.Module, kind: type[nn.Module], size: int) -> bool:
    """Return whether a plain convolution has a bias and, for each pixel, one of ``size`` a side."""
    return (
        is_plain(layer, kind)
        and isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d))
        and layer.kernel_size == layer.stride == (size, size)
        and layer.padding == layer.output_padding == (0, 0)
        and layer.dilation == (1, 1)
        and layer.groups == 1
        and layer.bias is not None
    )


def _projected(level: Tensor, project: nn.Module) -> Tensor:
    """Return ``project(level)``, a 1 x 1 convolution of a map that is channels last."""
    if not (torch.compiler.is_compiling() and _is_product(project, nn.Conv2d, 1)):
        result: Tensor = project(level)
        return result
    assert isinstance(project, nn.Conv2d)
    product = F.linear(level.permute(0, 2, 3, 1), project.weight.flatten(1), project.bias)
    return product.permute(0, 3, 1, 2)


def _doubled(level: Tensor, up: nn.Module) -> Tensor:
    """Return ``up(level)``, a 2 x 2 transposed convolution of a map that is channels last."""
    if not (torch.compiler.is_compiling() and _is_product(up, nn.ConvTranspose2d, 2)):
        result: Tensor = up(level)
        return result
    assert isinstance(up, nn.ConvTranspose2d) and up.bias is not None
    weight = up.weight.permute(2, 3, 1, 0).flatten(0, 2)  # [2 * 2 * C, C]
    product = F.linear(level.permute(0, 2, 3, 1), weight, up.bias.repeat(4))
    pixels = torch.unflatten(product, 3, (2, 2, -1)).transpose(2, 3)  # [B, h, 2, w, 2, C]
    return pixels.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


def _sum(level: Tensor, vit_map: Tensor | None) -> Tensor:
    """Return level + resized vit_map."""
    if vit_map is None:
        return level
    if vit_map.shape[2:] == level.shape[2:]:
        return level + vit_map
    if torch.compiler.is_compiling() and torch.is_grad_enabled():
        return level + _resized_by_products(vit_map, level.shape[2:])
    resized = F.interpolate(vit_map, level.shape[2:], mode="bilinear", align_corners=False)
    return resized.add_(level)


def _resized_by_products(small: Tensor, hw: Sequence[int]) -> Tensor:
    """Return F.interpolate(small, hw, mode="bilinear", align_corners=False), differentiably.

    torch's compiler loses the gradient of a resize (2.13, on CPUs, where it is added to another one
    in a kernel with a batch norm's); tests/model/test_model_compiled.py tells whether it still does
    so.
    """
    rows, columns = (_shares(*sizes, small) for sizes in zip(hw, small.shape[2:], strict=True))
    # Small matrices times maps that are channels last: along the columns, then along the rows.
    wide = torch.matmul(columns, small.permute(0, 2, 3, 1))  # [B, h, W, C]
    tall = torch.matmul(rows, wide.flatten(2))  # [B, H, W * C]
    return torch.unflatten(tall, 2, wide.shape[2:]).permute(0, 3, 1, 2)


def _shares(size: int, small_size: int, like: Tensor) -> Tensor:
    """Return the share that each of a few pixels has in each of many, [size, small_size]."""
    unit = torch.eye(small_size, dtype=like.dtype, device=like.device)
    return F.interpolate(unit[None], size, mode="linear", align_corners=False)[0].t()


def _normalized(level: Tensor, norm: nn.Module, memory_format: torch.memory_format) -> Tensor:
    if is_constant(norm):
        scale, shift = (part[:, None, None] for part in as_affine(norm))
        if _writes_once(level):
            dtype = torch.promote_types(level.dtype, scale.dtype)
            out = torch.empty_like(level, dtype=dtype, memory_format=memory_format)
            return torch.addcmul(shift, level, scale, out=out)
        return _relaid(torch.addcmul(shift, level, scale), memory_format)
    return normalize(norm, level, memory_format=memory_format)


def _writes_once(level: Tensor) -> bool:
    """Return whether the result is written in its layout at once: a pass less on GPUs.

    On the CPU ``_relaid`` is the faster way, and compilers fuse both.
    """
    return not (torch.is_grad_enabled() or tensors.is_recorded() or tensors.is_on_cpu(level))


def _sums_here(map_8: Tensor, at_4: Tensor, up: nn.Module, project: nn.Module) -> bool:
    return (
        not tensors.is_recorded()
        and tensors.is_on_cpu(map_8)
        and map_8.dtype == at_4.dtype
        and map_8.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
        and _is_product(up, nn.ConvTranspose2d, 2)
        and _is_product(project, nn.Conv2d, 1)
    )


def _largest(
    map_8: Tensor,
    at_4: Tensor,
    vit_map: Tensor | None,
    up: nn.Module,
    project: nn.Module,
    norm: nn.Module,
    memory_format: torch.memory_format,
) -> Tensor:
    """Return norm(up(map_8) + project(at_4) + resized vit_map).

    The map at 1/4 has three quarters of all pixels, and each new buffer of its size costs more than
    the arithmetic on it: the sum has one, and a constant norm goes into the weights.
    """
    assert isinstance(up, nn.ConvTranspose2d) and isinstance(project, nn.Conv2d)
    assert up.bias is not None and project.bias is not None
    up_weight, weight, bias = up.weight, project.weight.flatten(1), up.bias + project.bias
    if not is_constant(norm):
        total = _LargestSum.apply(map_8, up_weight, bias, at_4, weight, vit_map)  # type: ignore[no-untyped-call]
        return normalize(norm, total, memory_format=memory_format)
    scale, shift = as_affine(norm)
    total = _LargestSum.apply(  # type: ignore[no-untyped-call]
        map_8,
        up_weight * scale[:, None, None],
        bias * scale + shift,
        at_4,
        weight * scale[:, None],
        None if vit_map is None else vit_map * scale[:, None, None],
    )
    return _relaid(total, memory_format)


def _relaid(level: Tensor, memory_format: torch.memory_format) -> Tensor:
    """Return a map that is channels last in another format."""
    if memory_format == torch.channels_last or level.requires_grad or not token_rows.is_ours(level):
        return level.contiguous(memory_format=memory_format)
    out = torch.empty_like(level, memory_format=memory_format)
    for rows, planes in zip(map_to_tokens(level), out, strict=True):
        token_rows.transpose(rows, planes)
    return out


class _LargestSum(torch.autograd.Function):
    """Transposed convolution + 1 x 1 convolution + resized map, in one buffer; channels last."""

    @staticmethod
    def forward(
        ctx: Any,
        map_8: Tensor,
        up_weight: Tensor,
        bias: Tensor,
        at_4: Tensor,
        weight: Tensor,
        vit_map: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(map_8, up_weight, at_4, weight)
        ctx.vit_shape = None if vit_map is None else vit_map.shape
        total = F.conv_transpose2d(map_8, up_weight, bias, stride=2)
        total = total.contiguous(memory_format=torch.channels_last)
        rows = gemm.linear(_rows(at_4), weight, plus=_rows(total), overwrites=True)
        total = rows.view(total.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)
        if vit_map is not None:
            _add_resized(total, vit_map)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        map_8, up_weight, at_4, weight = ctx.saved_tensors
        needs = ctx.needs_input_grad
        grad = grad.contiguous(memory_format=torch.channels_last)
        grads: list[Tensor | None] = [None] * 6
        if needs[0]:
            grads[0] = F.conv2d(grad, up_weight, stride=2)
        if needs[1]:
            grads[1] = _up_weight_gradient(grad, map_8)
        if needs[2]:
            grads[2] = grad.sum((0, 2, 3))
        if needs[3]:
            hw = (at_4.shape[2], at_4.shape[3])
            grad_rows = gemm.linear(_rows(grad), weight.t())
            tokens = grad_rows.view(at_4.shape[0], hw[0] * hw[1], weight.shape[1])
            grads[3] = tokens_to_map(tokens, hw)
        if needs[4]:
            grads[4] = gemm.weight_gradient(_rows(grad), _rows(at_4))
        if needs[5]:
            grads[5] = torch.ops.aten.upsample_bilinear2d_backward(
                grad, grad.shape[2:], ctx.vit_shape, False
            )
        return tuple(grads)


def _rows(level: Tensor) -> Tensor:
    """View a map that is channels last as rows, [B * h * w, C]."""
    return map_to_tokens(level).flatten(0, 1)


def _up_weight_gradient(grad: Tensor, map_8: Tensor) -> Tensor:
    """Return the gradient of the 2 x 2 kernels, [C, C, 2, 2], tap by tap.

    torch's takes three times as long, 40 ms for 384 channels and [64, 64] (2-core AMD EPYC).
    """
    rows = _rows(map_8)
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
    shares = _shares(H, h, total).expand(B, H, h)
    rows = total.permute(0, 2, 3, 1).view(B, H, W * C)
    rows.baddbmm_(shares, wide.permute(0, 2, 3, 1).reshape(B, h, W * C))
