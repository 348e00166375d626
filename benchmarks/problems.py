# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Operators by kind: inputs, contenders, the truth, operations."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from cases import (
    MODEL_HEADS,
    MODEL_HIDDEN,
    ConvCase,
    WindowCase,
    extractor,
    injector,
    make_conv_inputs,
    make_inputs,
    make_qkv,
    query_centers,
)
from peers import Peer, attention_peers
from plain import rotation
from torch import Tensor
from worker import Spec

from vitadapter_fast import __version__, ops
from vitadapter_fast.fused.form import form_of
from vitadapter_fast.fused.half_convolution import convolve, half_dtype
from vitadapter_fast.fused.linear import residual_linear
from vitadapter_fast.model.rope import RotaryEmbedding
from vitadapter_fast.ops.window_attention.reference import merge_windows, partition_windows
from vitadapter_fast.presets import PRESETS

Op = Callable[..., Tensor]
OURS = "vitadapter_fast"
_POS_HW = (37, 37)


@dataclass(frozen=True)
class Problem:
    """One operator on one shape.

    Attributes:
        make: Returns the inputs for a seed, float64; those that have gradients require them.
        reference: The definition.
        contenders: {name: (version, call)}.
        flops: Of the forward pass.
    """

    make: Callable[[int], list[Tensor]]
    reference: Op
    contenders: dict[str, tuple[str, Op]]
    flops: int


def backends(device: str) -> dict[str, str | None]:
    """Return our contenders: what a user gets and, on GPUs, Triton instead."""
    return {OURS: None} | ({f"{OURS} triton": "triton"} if device == "cuda" else {})


def _ours(device: str, op: Callable[[str | None], Op]) -> dict[str, tuple[str, Op]]:
    return {name: (__version__, op(backend)) for name, backend in backends(device).items()}


def _attention(spec: Spec) -> Problem:
    """Either the op alone, or all from the offsets and logits that the projections give."""
    model, image, batch = spec.shape["model"], spec.shape["image"], spec.shape.get("batch", 1)
    make = {"extractor": extractor, "injector": injector}[spec.shape["side"]]
    case = make("", image, *MODEL_HEADS[model], batch=batch)
    sizes = torch.tensor([[w, h] for h, w in case.level_hw])[:, None]
    is_block = spec.shape["entry"] == "block"

    # At the first call, because contenders are listed also where there is no such device; and once,
    # because it waits for the GPU.
    @cache
    def geometry(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        centers = query_centers(case)[:, None, None, None]
        return centers.to(spec.device, dtype), sizes.to(spec.device)

    def located(offsets: Tensor) -> Tensor:
        wide = torch.promote_types(offsets.dtype, torch.float32)
        centers, each = geometry(wide)
        return centers + offsets.to(wide) / each

    def softmax(logits: Tensor) -> Tensor:
        return logits.flatten(-2).softmax(-1).view_as(logits)

    def inputs(seed: int) -> list[Tensor]:
        grid = make_inputs(case, spread=2.0, seed=seed)
        if is_block:
            return [tensor.requires_grad_() for tensor in grid.tensors()]
        points = (query_centers(case)[:, None, None, None] + grid.points / sizes).detach()
        points.keeps_width = True  # type: ignore[attr-defined]
        return [each.requires_grad_() for each in (grid.value, points, softmax(grid.weights))]

    def ours(backend: str | None) -> Op:
        if not is_block:
            return lambda value, points, weights: ops.ms_deform_attn(
                value, case.level_hw, points, weights, backend=backend
            )
        return lambda value, offsets, logits: ops.ms_deform_attn_grid(
            value, case.level_hw, case.query_hw, offsets, logits, backend=backend
        )

    def theirs(peer: Peer) -> Op:
        if not is_block:
            return lambda value, points, weights: peer.run(value, case.level_hw, points, weights)
        return lambda value, offsets, logits: peer.run(
            value,
            case.level_hw,
            located(offsets),
            logits if peer.takes_logits else softmax(logits),
        )

    peers = [p for p in attention_peers(spec.device) if is_block or not p.takes_logits]
    contenders = _ours(spec.device, ours) | {p.name: (p.version, theirs(p)) for p in peers}
    corners = batch * case.num_queries * case.heads * len(case.level_hw) * case.points
    return Problem(inputs, ours("reference"), contenders, 8 * corners * case.channels)


def _patch_embed(spec: Spec) -> Problem:
    channels = PRESETS[spec.shape["model"]].embed_dim
    image, batch = spec.shape["image"], spec.shape.get("batch", 1)

    def inputs(seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        weight = normal(channels, 3, 16, 16) / 28  # tokens of variance 1
        leaves = [weight, normal(channels), normal(_POS_HW[0] * _POS_HW[1], channels)]
        return [normal(batch, 3, image, image), *(leaf.requires_grad_() for leaf in leaves)]

    def ours(backend: str | None) -> Op:
        return partial(ops.patch_embed, pos_hw=_POS_HW, backend=backend)

    def composed(image: Tensor, weight: Tensor, bias: Tensor, pos_embed: Tensor) -> Tensor:
        """Compute the same as the original ViT-Adapter does."""
        maps = F.conv2d(image, weight, bias, stride=weight.shape[2:])
        table = pos_embed.view(1, *_POS_HW, -1).permute(0, 3, 1, 2)
        positions = F.interpolate(table, size=maps.shape[2:], mode="bicubic")
        return maps.flatten(2).transpose(1, 2) + positions.flatten(2).transpose(1, 2)

    contenders = _ours(spec.device, ours)
    contenders["conv2d + interpolate"] = (torch.__version__, composed)
    flops = 2 * batch * (image // 16) ** 2 * 3 * 16 * 16 * channels
    return Problem(inputs, ours("reference"), contenders, flops)


def _window_attention(spec: Spec) -> Problem:
    side, batch = spec.shape["image"] // 16, spec.shape.get("batch", 1)
    heads = PRESETS[spec.shape["model"]].num_heads
    case = WindowCase("", batch, heads, 64, (side, side), 14)

    def ours(backend: str | None) -> Op:
        return lambda qkv: ops.window_attention(qkv, case.hw, case.window_size, backend=backend)

    def views(qkv: Tensor) -> Tensor:
        """Pad, cut into windows by views, attend by torch's fused kernel, merge."""
        windows = partition_windows(qkv.flatten(2), case.hw, case.window_size)
        parts = torch.unflatten(windows, 2, (3, case.heads, -1)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)
        return merge_windows(out, case.hw, case.window_size)

    def unfold(qkv: Tensor) -> Tensor:
        """Compute the same as the original ViT-Adapter does."""
        (h, w), size, M, D = case.hw, case.window_size, case.heads, case.channels
        maps = qkv.flatten(2).transpose(1, 2).unflatten(2, (h, w))
        maps = F.pad(maps, (0, -w % size, 0, -h % size))
        columns = F.unfold(maps, (size, size), stride=(size, size))
        columns = columns.view(case.batch, 3, M, D, size * size, -1).permute(1, 0, 5, 2, 4, 3)
        query, key, value = columns  # [B, windows, M, size * size, D]
        attended = (query * D**-0.5 @ key.transpose(-2, -1)).softmax(-1) @ value
        columns = attended.permute(0, 2, 4, 3, 1).reshape(case.batch, M * D * size * size, -1)
        maps = F.fold(columns, maps.shape[2:], (size, size), stride=(size, size))
        return maps[:, :, :h, :w].flatten(2).transpose(1, 2)

    contenders = {OURS: (__version__, ours(None))}  # on GPUs that is Triton's
    contenders["pad + views + SDPA"] = (torch.__version__, views)
    contenders["unfold + softmax + fold"] = (torch.__version__, unfold)
    whole, rest = divmod(side, case.window_size)
    pairs = (whole * case.window_size**2 + rest**2) ** 2
    make = lambda seed: [make_qkv(case, seed=seed, spread=1.0).requires_grad_()]  # noqa: E731
    return Problem(make, ours("reference"), contenders, 4 * batch * heads * 64 * pairs)


def _rope(spec: Spec) -> Problem:
    side, batch = spec.shape["image"] // 16, spec.shape.get("batch", 1)
    heads, count = PRESETS[spec.shape["model"]].num_heads, (spec.shape["image"] // 16) ** 2
    whole = RotaryEmbedding(64, "bfloat16")((side, side), torch.empty(0, dtype=torch.float64))

    @cache
    def tables(device: torch.device, dtype: torch.dtype) -> Tensor:
        return whole.to(device, torch.promote_types(dtype, torch.float32))

    def ours(backend: str | None) -> Op:
        return lambda qkv: ops.rope(
            qkv, tables(qkv.device, qkv.dtype), (side, side), backend=backend
        )

    @cache
    def rotations(device: torch.device, dtype: torch.dtype) -> list[Tensor]:
        parts = rotation(tables(device, dtype), (side, side))
        return [part.to(dtype)[:, None, None] for part in parts]

    def composed(qkv: Tensor) -> Tensor:
        """Cut off the prefix, rotate by tables of all channels, put it back, as transformers."""
        cos, sin = rotations(qkv.device, qkv.dtype)
        both, value = qkv.split([2, 1], dim=2)
        grid, prefix = both.split([count, both.shape[1] - count], dim=1)
        first, second = grid.chunk(2, dim=4)
        grid = grid * cos + torch.cat([-second, first], 4) * sin
        return torch.cat([torch.cat([grid, prefix], 1), value], 2)

    def make(seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        shape = (batch, count + 5, 3, heads, 64)
        return [torch.randn(shape, generator=generator).double().requires_grad_()]

    contenders = _ours(spec.device, ours) | {"split + cat": (torch.__version__, composed)}
    return Problem(make, ours("reference"), contenders, 0)


def _dwconv_gelu(spec: Spec) -> Problem:
    model, image, batch = spec.shape["model"], spec.shape["image"], spec.shape.get("batch", 1)
    grids = extractor("", image, 1, 1).query_hw
    case = ConvCase("", batch, MODEL_HIDDEN[model], grids)

    def ours(backend: str | None) -> Op:
        return lambda tokens, weight, bias: ops.dwconv_gelu(
            tokens, grids, weight, bias, backend=backend
        )

    def composed(tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Split, transpose, convolve each grid, transpose, concatenate, GELU."""
        outs = []
        for part, hw in zip(tokens.split([h * w for h, w in grids], 1), grids, strict=True):
            maps = part.transpose(1, 2).unflatten(2, hw).contiguous()
            maps = F.conv2d(maps, weight, bias, padding=1, groups=weight.shape[0])
            outs.append(maps.flatten(2).transpose(1, 2))
        return F.gelu(torch.cat(outs, 1))

    def make(seed: int) -> list[Tensor]:
        return [each.requires_grad_() for each in make_conv_inputs(case, seed=seed).tensors()]

    contenders = _ours(spec.device, ours)
    contenders["split + conv2d + cat"] = (torch.__version__, composed)
    flops = 2 * 9 * batch * case.num_tokens * case.channels
    return Problem(make, ours("reference"), contenders, flops)


def _batch_norm(spec: Spec) -> Problem:
    """The largest map of the pyramid in training, from channels last to NCHW."""
    channels, batch = PRESETS[spec.shape["model"]].embed_dim, spec.shape.get("batch", 1)
    side = spec.shape["image"] // 4

    def make(seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        shapes = ((batch, side * side, channels), (channels,), (channels,))
        made = [torch.randn(s, generator=generator).double().requires_grad_() for s in shapes]
        for tensor in made[1:]:
            tensor.keeps_width = True  # type: ignore[attr-defined]
        return made

    def ours(backend: str | None) -> Op:
        return lambda *args: ops.batch_norm(*args, has_planes=True, backend=backend)[0]

    def layers(tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        maps = tokens.unflatten(1, (side, side)).permute(0, 3, 1, 2)
        out = F.batch_norm(maps, None, None, weight, bias, training=True, eps=1e-5)
        return out.contiguous().flatten(2)

    contenders = {OURS: (__version__, ours(None)), "torch": (torch.__version__, layers)}
    return Problem(make, ours("reference"), contenders, 0)


def _int8_linear(spec: Spec) -> Problem:
    """The last layer of a block's feed-forward, and the residual."""
    channels, batch = PRESETS[spec.shape["model"]].embed_dim, spec.shape.get("batch", 1)
    tokens = (spec.shape["image"] // 16) ** 2
    generator = torch.Generator().manual_seed(98)
    weight, scales = ops.int8_weight(torch.randn(channels, 4 * channels, generator=generator))
    matrix = weight.transpose(1, 2).reshape(channels, -1).t().contiguous()
    sums = matrix.sum(0, dtype=torch.int32)

    def make(seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        shapes = (batch, tokens, 4 * channels), (batch, tokens, channels)
        return [torch.randn(s, generator=generator).double().requires_grad_() for s in shapes]

    def ours(backend: str | None) -> Op:
        return lambda x, plus: ops.int8_linear(x, weight, scales, plus=plus, backend=backend)

    def composed(x: Tensor, plus: Tensor) -> Tensor:
        """Round, multiply by oneDNN and scale, one after the other."""
        rows = x.detach().float().flatten(0, 1)
        low, high = rows.amin(1, keepdim=True).clamp(max=0), rows.amax(1, keepdim=True)
        step = high.clamp(min=0) / 255 - low / 255
        inverse = 1 / step
        zero = torch.round(-low * inverse) - 128
        rounded = torch.clamp(torch.round(rows * inverse) + zero, -128, 127).to(torch.int8)
        total = (torch._int_mm(rounded, matrix) - zero.int() * sums) * (step * scales)
        exact = total.view_as(plus).to(x.dtype) + plus
        if not torch.is_grad_enabled():
            return exact
        smooth = F.linear(x, (matrix * scales).t().to(x.dtype)) + plus
        return smooth + (exact - smooth).detach()

    contenders = {OURS: (__version__, ours(None))}
    contenders["torch._int_mm, composed"] = (torch.__version__, composed)
    return Problem(make, ours("reference"), contenders, 8 * batch * tokens * channels**2)


def _feed_forward(spec: Spec) -> Problem:
    """The last layer of a block's feed-forward, GELU and the residual: as the model calls it."""
    channels, batch = PRESETS[spec.shape["model"]].embed_dim, spec.shape.get("batch", 1)
    tokens = (spec.shape["image"] // 16) ** 2

    def make(seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        shapes = (batch, tokens, channels), (batch, tokens, 4 * channels), (channels, 4 * channels)
        return [torch.randn(s, generator=generator).double().requires_grad_() for s in shapes]

    def ours(x: Tensor, hidden: Tensor, weight: Tensor) -> Tensor:
        layer: Any = SimpleNamespace(weight=weight, bias=None)
        return residual_linear(form_of(x, weight), x, hidden, layer, activation="gelu")

    def plain(x: Tensor, hidden: Tensor, weight: Tensor) -> Tensor:
        return x + F.linear(F.gelu(hidden), weight)

    contenders = {OURS: (__version__, ours), "torch": (torch.__version__, plain)}
    return Problem(make, plain, contenders, 8 * batch * tokens * channels**2)


def _stem_convolution(spec: Spec) -> Problem:
    """A convolution of the spatial prior's stem, 64 channels to 64, as a backward pass wants it."""
    channels, batch, side = 64, spec.shape.get("batch", 1), spec.shape["image"] // 2

    def make(seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        pixels = torch.randn((batch, side, side, channels), generator=generator).double()
        weight = torch.randn((channels, channels, 3, 3), generator=generator).double()
        return [pixels.permute(0, 3, 1, 2).requires_grad_(), weight.requires_grad_()]

    def plain(x: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(x, weight, None, 1, 1)

    def ours(x: Tensor, weight: Tensor) -> Tensor:
        halves = half_dtype(x, weight)
        return plain(x, weight) if halves is None else convolve(x, weight, None, 1, halves)

    contenders = {OURS: (__version__, ours), "torch": (torch.__version__, plain)}
    return Problem(make, plain, contenders, 18 * batch * side**2 * channels**2)


PROBLEMS: dict[str, Callable[[Spec], Problem]] = {
    "ms_deform_attn": _attention,
    "patch_embed": _patch_embed,
    "window_attention": _window_attention,
    "rope": _rope,
    "dwconv_gelu": _dwconv_gelu,
    "batch_norm": _batch_norm,
    "int8_linear": _int8_linear,
    "feed_forward": _feed_forward,
    "stem_convolution": _stem_convolution,
}
