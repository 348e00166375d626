# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Projected queries, keys and values in; attended tokens out, by the operator or by torch."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..native import extension, gemm, tensors
from ..ops import window_attention
from ..ops._backends import requested
from ..ops.window_attention import triton
from ..ops.window_attention._call import Call
from ..ops.window_attention.reference import merge_windows, partition_windows
from .rotation import rotated


def by_heads(attn: Any, qkv: Tensor, hw: tuple[int, int], rope: Tensor | None) -> Tensor:
    """Return queries, keys and values by heads, [B, N, 3, M, D], rotated if there is ``rope``.

    Args:
        attn: An ``Attention``.
        qkv: What its projection returned, [B, N, 3 * C]; may be overwritten.
        hw: (h, w) of the token grid.
        rope: As for ``ops.rope``, or None.
    """
    heads = torch.unflatten(qkv, 2, (3, attn.num_heads, -1))
    return heads if rope is None else rotated(attn, qkv, heads, hw, rope)


def attend(heads: Tensor, hw: tuple[int, int], window_size: int | None, dropout: float) -> Tensor:
    """Attend among all tokens, or within square windows of the grid.

    Args:
        heads: Queries, keys and values, [B, N, 3, M, D].
        hw: (h, w) of the token grid; global attention does not use it.
        window_size: Side of the windows in tokens, or None for global attention.
        dropout: Rate at which attention weights are dropped.

    Returns:
        [B, N, M * D].
    """
    if window_size is None:
        if dropout > 0.0 or global_reason(heads) is not None:
            return _by_torch(heads, dropout)
        return window_attention(heads, (1, heads.shape[1]), None)
    if dropout > 0.0 or window_reason(heads, hw, window_size) is not None:
        windows = partition_windows(heads.flatten(2), hw, window_size)
        windows = torch.unflatten(windows, 2, heads.shape[2:])
        return merge_windows(_by_torch(windows, dropout), hw, window_size)
    return window_attention(heads, hw, window_size)


def _by_torch(heads: Tensor, dropout: float) -> Tensor:
    """[B, N, 3, M, D] -> [B, N, M * D]."""
    # Strided views of one buffer: scaled_dot_product_attention reads them without a copy.
    query, key, value = heads.permute(2, 0, 3, 1, 4)
    out = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
    return out.transpose(1, 2).flatten(2)


def global_reason(heads: Tensor) -> str | None:
    """Return why torch attends among all tokens, [B, N, 3, M, D], and not our operator, or None.

    On the CPU in float32 ours is faster: it keeps one thread busy for each head of each image,
    where torch also splits the queries. Milliseconds on a 2-core AMD EPYC (AVX-512), 6 heads of 64
    channels, torch's against ours: 1024 tokens forward 10.1 and 5.3, with backward 36 and 18; 4096
    tokens 157 and 78, 570 and 263.
    """
    if tensors.is_recorded():
        return "a compiler or tracer records it, which knows torch's attention"
    if not tensors.is_on_cpu(heads) or (
        heads.dtype != torch.float32 and gemm.compute_dtype(heads, heads.dtype) != torch.float32
    ):
        return "torch's is as fast for all but products of float32 on the CPU"
    if (name := requested(None)) not in (None, "cpu"):
        return f"{name} was asked for"
    if heads.shape[0] * heads.shape[3] < torch.get_num_threads():
        return "there are fewer heads than threads"
    return extension.load()[1] or None


def window_reason(heads: Tensor, hw: tuple[int, int], window_size: int) -> str | None:
    """Return why torch attends to copies of windows and not our operator to them, or None.

    GPUs have Triton's kernel, for most heads. Where they have none the copies keep no logits, as
    the operator's definition would.
    """
    if torch.compiler.is_compiling() or tensors.is_on_cpu(heads) or requested(None) is not None:
        return None
    return triton.unsupported_reason(Call(heads, list(hw), window_size))
