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

from . import extension, tensors

_PLAIN = (Tensor, torch.nn.Parameter)
_KEPT_BYTES = 64 * 2**20
_buffers = threading.local()


def is_ours(*inputs: Tensor) -> bool:
    """Return whether our kernels take these: plain float32 tensors on the CPU, not recorded."""
    return (
        all(
            type(tensor) in _PLAIN  # not fake ones, nor others that only look dense
            and tensor.dtype == torch.float32
            and tensors.is_on_cpu(tensor)
            and tensor.numel() > 0
            for tensor in inputs
        )
        and not tensors.is_recorded()
        and extension.load()[0] is not None
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
    out = _kept("normalized", x.numel()).view(x.shape)
    extension.launch(
        "normalize_rows_cpu",
        rows=x,
        weight=weight,
        bias=bias,
        shape=(mean.numel(), x.shape[-1]),
        eps=eps,
        out=out,
        mean=mean,
        rstd=rstd,
        **more,
        num_threads=torch.get_num_threads(),
    )
    return out, mean, rstd


def transpose(rows: Tensor, out: Tensor | None = None) -> Tensor:
    """Return the dense transpose of rows, [C, N].

    Args:
        rows: [N, C], each row dense.
        out: Dense memory for it, float32 or bfloat16; None takes what the thread's next call may
            write to.
    """
    N, C = rows.shape
    assert C == 1 or rows.stride(1) == 1
    out = (_kept("transposed", N * C) if out is None else out).view(C, N)
    extension.launch(
        "transpose_rows_cpu",
        rows=rows,
        stride=rows.stride(0),
        shape=(N, C),
        out=out,
        out_dtype=extension.DTYPE_CODES[out.dtype],
        num_threads=torch.get_num_threads(),
    )
    return out


def gelu(hidden: Tensor, grad: Tensor | None = None) -> Tensor:
    """Return GELU of each element, exact, in memory that the thread's next call may write to.

    Args:
        hidden: [..., K], dense.
        grad: A gradient of the result, dense; it becomes that of ``hidden``, in place.
    """
    assert hidden.is_contiguous() and (grad is None or grad.is_contiguous())
    out = _kept("activated", hidden.numel()).view(hidden.shape)
    extension.launch(
        "gelu_rows_cpu",
        rows=hidden,
        count=hidden.numel(),
        out=out,
        grad=grad,
        num_threads=torch.get_num_threads(),
    )
    return out


def widened(weight: Tensor) -> Tensor:
    """Return a dense copy of float32, in memory that the thread's next call may write to."""
    return _kept("widened", weight.numel()).view(weight.shape).copy_(weight)


def kept_bytes(nbytes: int) -> Tensor:
    """Return memory that the thread's next call may write to."""
    return _kept("rounded", -(-nbytes // 4))


def _kept(use: str, numel: int) -> Tensor:
    """Return [numel] of float32 that this thread keeps for ``use``, up to a limit.

    The next call for the same use may return the same memory.
    """
    found: Tensor | None = getattr(_buffers, use, None)
    if found is None or found.numel() < numel:
        with torch.inference_mode(False):
            # Whatever torch's defaults are: of another dtype it would be too short.
            found = torch.empty(numel, dtype=torch.float32, device="cpu")
            found = extension.in_huge_pages(found)
        if found.nbytes <= _KEPT_BYTES:
            setattr(_buffers, use, found)
    return found[:numel]
