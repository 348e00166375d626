# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Calls of our operators in, the same in operators that ONNX has out.

Sizes may be symbols, and no branch may depend on their values: it would be taken once, for the size
of the example image.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from ..ops._arguments import pairs
from ..ops.dwconv_gelu import reference as dwconv_gelu
from ..ops.dwconv_gelu._call import Call as DwconvGelu
from ..ops.ms_deform_attn._call import with_heads
from ..ops.ms_deform_attn.reference import query_centers
from ..ops.patch_embed import reference as patch_embed
from ..ops.patch_embed._call import Call as PatchEmbed
from ..ops.rope import reference as rope
from ..ops.rope._call import Call as Rope
from ..ops.window_attention import reference as window_attention
from ..ops.window_attention._call import Call as WindowAttention

PLUGIN_DOMAIN = "trt.plugins"
PLUGIN = "MultiscaleDeformableAttnPlugin_TRT"

# value [B, S, M, D], (height, width) of the levels [L, 2], first token of each level [L],
# locations [B, Q, M, L, P, 2] as (x, y) in [0, 1], weights [B, Q, M, L, P] -> [B, Q, M, D]
Sample = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def decompositions(sample: Sample) -> dict[Any, Callable[..., Any]]:
    """Return for each operator of the model, in eval mode, what to put in its place.

    Args:
        sample: Computes deformable attention: ``sample_by_gather`` or ``sample_by_plugin``.
    """
    ops = torch.ops.vitadapter_fast
    return {
        ops.ms_deform_attn_grid.default: partial(_attend, sample),
        ops.dwconv_gelu.default: _of(dwconv_gelu, DwconvGelu),
        ops.patch_embed.default: _of(patch_embed, PatchEmbed),
        ops.rope.default: _of(rope, Rope),
        ops.window_attention.default: _of(window_attention, WindowAttention),
    }


def sample_by_gather(
    value: Tensor, level_hw: Tensor, level_start: Tensor, locations: Tensor, weights: Tensor
) -> Tensor:
    """Sum bilinear samples, whose four corners are rows of one table; see ``Sample``."""
    B, S, M, D = value.shape
    _, Q, _, L, P, _ = locations.shape
    size = level_hw.to(torch.int64).flip(-1)[:, None]  # [L, 1, 2] as (w, h)
    pixels = locations * size - 0.5
    # NaN, infinite and far points read zero, and never become an index.
    inside = ((pixels > -1) & (pixels < size)).all(-1, keepdim=True)
    pixels = torch.where(inside, pixels, 0.0)[..., None, :]  # [B, Q, M, L, P, 1, 2]
    size = size[:, None]
    corner = torch.arange(4, device=value.device)
    corner = torch.stack((corner % 2, corner // 2), -1)  # [4, 2] as (x, y)
    first = pixels.floor()
    share_x, share_y = (1 - corner - (pixels - first)).abs().unbind(-1)  # [B, Q, M, L, P, 4]
    xy = first.to(torch.int64) + corner
    is_pixel = ((xy >= 0) & (xy < size)).all(-1)
    share = torch.where(is_pixel & inside, share_x * share_y, 0.0) * weights[..., None]
    x, y = xy.clamp(min=0).minimum(size - 1).unbind(-1)
    token = level_start.to(torch.int64)[:, None, None] + y * size[..., 0] + x
    batch = torch.arange(B, device=value.device).view(B, 1, 1, 1, 1, 1)
    head = torch.arange(M, device=value.device).view(M, 1, 1, 1)
    row = (batch * S + token) * M + head
    table = value.reshape(B * S * M, D)
    corners = torch.index_select(table, 0, row.flatten()).view(B, Q, M, L * P * 4, D)
    return (share.reshape(B, Q, M, 1, L * P * 4) @ corners).squeeze(3)


def sample_by_plugin(
    value: Tensor, level_hw: Tensor, level_start: Tensor, locations: Tensor, weights: Tensor
) -> Tensor:
    """Name the plugin that TensorRT brings for this; see ``Sample``.

    Version 1 is the older: TensorRT 10.11 deprecates it for version 2, which has the same inputs
    and attributes.

    Source: https://github.com/NVIDIA/TensorRT, plugin/multiscaleDeformableAttnPlugin/README.md; its
    parser finds plugins by the name of the node and these attributes, in any domain.
    """
    B, _, M, D = value.shape
    return torch.onnx.ops.symbolic(
        f"{PLUGIN_DOMAIN}::{PLUGIN}",
        (value, level_hw, level_start, locations, weights),
        {"plugin_version": "1", "plugin_namespace": ""},
        dtype=value.dtype,
        shape=(B, locations.shape[1], M, D),
        version=1,
    )


def _attend(
    sample: Sample,
    value: Tensor,
    level_hw: Sequence[int],
    query_hw: Sequence[int],
    offsets: Tensor,
    logits: Tensor,
    *,
    backend: str | None = None,
) -> Tensor:
    B, Q, M, L, P, _ = offsets.shape
    value = with_heads(value, offsets)
    levels = pairs(list(level_hw))
    starts = [0, *accumulate(h * w for h, w in levels)][:-1]
    hw = _as_tensor(level_hw, value).view(L, 2)
    centers = query_centers(pairs(list(query_hw)), offsets)[:, None, None, None]
    locations = centers + offsets / hw.flip(-1)[:, None].to(offsets.dtype)
    weights = logits.reshape(B, Q, M, L * P).softmax(-1).view(B, Q, M, L, P)
    return sample(value, hw, _as_tensor(starts, value), locations, weights).flatten(2)


def _as_tensor(sizes: Sequence[int], like: Tensor) -> Tensor:
    """Return sizes as int32, the only type of the plugin; torch.tensor would fix symbols."""
    parts = [torch.scalar_tensor(size, dtype=torch.int32, device=like.device) for size in sizes]
    return torch.stack(parts)


def _of(reference: Any, call: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, backend: str | None = None) -> Any:
        return reference.forward(call(*args))

    return run
