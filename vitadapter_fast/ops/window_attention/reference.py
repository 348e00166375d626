# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Queries, keys and values in; attended tokens out. The definition, in plain PyTorch."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .._recording import recording
from ._call import Call


def unsupported_reason(call: Call) -> str | None:
    """Return None: plain PyTorch runs everywhere."""
    return None


def forward(call: Call) -> tuple[Tensor, Tensor]:
    """Return the attended tokens, [B, h * w, M * D], and logsumexp of the logits, [B, h * w, M]."""
    return _attend(call)


def backward(
    call: Call, grad_out: Tensor, needs: Sequence[bool], out: Tensor, logsumexp: Tensor
) -> list[Tensor | None]:
    """Return the gradient of qkv, [B, h * w, 3, M, D]."""
    leaf = call.qkv.detach().requires_grad_()
    with recording():
        attended, _ = _attend(call._replace(qkv=leaf))
    (grad,) = torch.autograd.grad(attended, leaf, grad_out)
    return [grad.contiguous()]  # as the fake promises


def partition_windows(tokens: Tensor, hw: tuple[int, int], size: int) -> Tensor:
    """Cut a token grid into windows, with zeros on the right and bottom where it does not divide.

    Args:
        tokens: [B, h * w, K].
        hw: (h, w) of the grid.
        size: Side of a window in tokens.

    Returns:
        [B * rows * columns, size * size, K], windows in row-major order.
    """
    h, w = hw
    rows, columns = _num_windows(h, size), _num_windows(w, size)
    grid = torch.unflatten(tokens, 1, hw)
    pad_h, pad_w = rows * size - h, columns * size - w
    if torch.compiler.is_compiling() or pad_h or pad_w:  # traced once for both
        grid = F.pad(grid, (0, 0, 0, pad_w, 0, pad_h))
    split = torch.unflatten(grid, 1, (rows, size))  # [B, rows, size, w, K]
    windows = torch.unflatten(split, 3, (columns, size)).transpose(2, 3)
    return windows.flatten(0, 2).flatten(1, 2)


def merge_windows(windows: Tensor, hw: tuple[int, int], size: int) -> Tensor:
    """Undo ``partition_windows``.

    Args:
        windows: [B * rows * columns, size * size, K].
        hw: (h, w) of the grid.
        size: Side of a window in tokens.

    Returns:
        [B, h * w, K].
    """
    h, w = hw
    rows, columns = _num_windows(h, size), _num_windows(w, size)
    B = windows.shape[0] // (rows * columns)
    split = torch.unflatten(torch.unflatten(windows, 1, (size, size)), 0, (B, rows, columns))
    grid = split.transpose(2, 3).flatten(3, 4).flatten(1, 2)  # [B, rows * size, columns * size, K]
    return grid[:, :h, :w].flatten(1, 2)


def _num_windows(length: int, size: int) -> int:
    # Not -(-length // size): ONNX rounds the quotient of a negative number up.
    return (length + size - 1) // size


def _attend(call: Call) -> tuple[Tensor, Tensor]:
    # 16-bit inputs are computed in float32 and rounded once.
    compute = torch.promote_types(call.qkv.dtype, torch.float32)
    (h, w), size, (M, D) = call.hw, call.window_size, call.qkv.shape[3:]
    # Padded after the projection, so a padding key is zero rather than the bias. It is not masked:
    # it takes its share of the softmax, as weights trained upstream expect.
    tokens = call.qkv.to(compute).flatten(2)
    windows = partition_windows(tokens, (h, w), size) if size else tokens
    query, key, value = torch.unflatten(windows, 2, (3, M, D)).permute(2, 0, 3, 1, 4)
    logits = query @ key.transpose(2, 3) * D**-0.5  # [windows, M, size * size, size * size]
    out = (logits.softmax(-1) @ value).transpose(1, 2).flatten(2)
    logsumexp = logits.detach().logsumexp(-1).transpose(1, 2)
    if size:
        out, logsumexp = (merge_windows(part, (h, w), size) for part in (out, logsumexp))
    return out.to(call.qkv.dtype).contiguous(), logsumexp.contiguous()
