# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Rows of tokens in; out, normalized, activated or transposed, what a matrix product reads next.

Float32 on the CPU, by kernels of ours (csrc/token_rows). What they write lies in memory that each
thread keeps: a fresh buffer costs more than the arithmetic, since the C library returns it to the
system and gets it back page by page. A normalization of [5376, 384] in a training step takes 0.4 ms
and with fresh buffers 2 to 7 (2 cores of an AMD EPYC).
"""

import threading

import torch
from torch import Tensor

from . import _native, _tensors

_KEPT_BYTES = 64 * 2**20
_PLAIN = (Tensor, torch.nn.Parameter)
_kept = threading.local()


def is_ours(*tensors: Tensor) -> bool:
    """Return whether our kernels take these: plain float32 tensors on the CPU, not recorded."""
    return (
        all(
            type(tensor) in _PLAIN  # not fake ones, nor others that only look dense
            and tensor.dtype == torch.float32
            and _tensors.is_on_cpu(tensor)
            and tensor.numel() > 0
            for tensor in tensors
        )
        and not _tensors.is_recorded()
        and _native.unavailable_reason() is None
    )


def normalize(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return what torch.native_layer_norm does over the last dimension.

    Args:
        x: [..., C].
        weight: [C].
        bias: [C].
        eps: Added to the variance.

    Returns:
        The normalized tokens, in memory that the thread's next call may write to; mean and
        1 / deviation, [..., 1].
    """
    return _normalize(x, weight, bias, eps)


def normalize_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, eps: float, plus: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Turn a gradient of ``normalize(x, ...)`` into one of ``x``, and add ``plus``, in place.

    Args:
        grad: [..., C], dense.
        x: [..., C].
        weight: [C].
        bias: [C].
        eps: Added to the variance.
        plus: [..., C] or None.

    Returns:
        The normalized tokens, in memory that the thread's next call may write to; the gradients of
        weight and bias, [C].
    """
    assert grad.is_contiguous() and grad.shape == x.shape
    grad_weight, grad_bias = torch.empty_like(weight), torch.empty_like(bias)
    plus = None if plus is None else plus.contiguous()
    more = {"plus": plus, "grad_weight": grad_weight, "grad_bias": grad_bias}
    return _normalize(x, weight, bias, eps, grad=grad, **more)[0], grad_weight, grad_bias


def _normalize(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, **more: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    x, weight, bias = x.contiguous(), weight.contiguous(), bias.contiguous()
    mean, rstd = x.new_empty((*x.shape[:-1], 1)), x.new_empty((*x.shape[:-1], 1))
    out = _memory("normalized", x.numel()).view(x.shape)
    _native.launch(
        "normalize_rows_cpu",
        rows=_native.address(x),
        weight=_native.address(weight),
        bias=_native.address(bias),
        shape=(mean.numel(), x.shape[-1]),
        eps=eps,
        out=_native.address(out),
        mean=_native.address(mean),
        rstd=_native.address(rstd),
        **{name: _native.address(tensor) for name, tensor in more.items()},
        num_threads=_native.num_threads(),
    )
    return out, mean, rstd


def transpose(rows: Tensor, out: Tensor | None = None) -> Tensor:
    """Return the dense transpose of rows, [C, N].

    Args:
        rows: [N, C], each row dense.
        out: Dense memory for it; None takes what the thread's next call may write to.
    """
    N, C = rows.shape
    assert C == 1 or rows.stride(1) == 1
    out = (_memory("transposed", N * C) if out is None else out).view(C, N)
    _native.launch(
        "transpose_rows_cpu",
        rows=_native.address(rows),
        stride=rows.stride(0),
        shape=(N, C),
        out=_native.output_address(out),
        num_threads=_native.num_threads(),
    )
    return out


def gelu(hidden: Tensor, grad: Tensor | None = None) -> Tensor:
    """Return GELU of each element, exact, in memory that the thread's next call may write to.

    Args:
        hidden: [..., K], dense.
        grad: A gradient of the result, dense; it becomes that of ``hidden``, in place.
    """
    assert hidden.is_contiguous() and (grad is None or grad.is_contiguous())
    out = _memory("activated", hidden.numel()).view(hidden.shape)
    _native.launch(
        "gelu_rows_cpu",
        rows=_native.address(hidden),
        count=hidden.numel(),
        out=_native.address(out),
        grad=_native.address(grad),
        num_threads=_native.num_threads(),
    )
    return out


def _memory(use: str, numel: int) -> Tensor:
    """Return [numel] of float32 that this thread keeps for ``use``, up to a limit."""
    memory: Tensor | None = getattr(_kept, use, None)
    if memory is None or memory.numel() < numel:
        with torch.inference_mode(False):
            memory = torch.empty(numel, device="cpu")  # whatever torch's default is
        if memory.nbytes <= _KEPT_BYTES:
            setattr(_kept, use, memory)
    return memory[:numel]
