# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The C++ kernels for CPU tensors: csrc/batch_norm/{forward,backward}_cpu.cpp."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...native import extension, tensors
from ...native.tensors import dense_rows
from ._call import Call, new_outputs


def unsupported_reason(call: Call) -> str | None:
    """Return why the CPU kernels cannot run this call, or None."""
    if not tensors.is_on_cpu(call.tokens):
        return f"it runs on CPU tensors, got {call.tokens.device}"
    return extension.unavailable_reason()


def forward(call: Call) -> tuple[Tensor, Tensor, Tensor]:
    """Return the result, [B, N, C] or [B, C, N], mean and variance, [C] each."""
    out, mean, variance = new_outputs(call)
    call = _dense(call)
    extension.launch(
        "batch_norm_forward_cpu",
        **_arguments(call, mean, variance),
        out=extension.in_huge_pages(out),
    )
    return out, mean, variance


def backward(
    call: Call, grad_out: Tensor, needs: Sequence[bool], mean: Tensor, variance: Tensor
) -> list[Tensor | None]:
    """Return the gradients of tokens, weight and bias: all of them, in one pass."""
    tokens = torch.empty(call.tokens.shape, dtype=call.tokens.dtype, device="cpu")
    weight, bias = torch.empty_like(call.weight), torch.empty_like(call.bias)
    call, grad_out = _dense(call), dense_rows(grad_out)
    mean, variance = mean.contiguous(), variance.contiguous()
    extension.launch(
        "batch_norm_backward_cpu",
        **_arguments(call, mean, variance),
        grad_out=grad_out,
        grad_out_strides=grad_out.stride()[:2],
        grad_tokens=extension.in_huge_pages(tokens),
        grad_weight=extension.in_huge_pages(weight),
        grad_bias=extension.in_huge_pages(bias),
    )
    return [tokens, weight, bias]


def _dense(call: Call) -> Call:
    return call._replace(
        tokens=dense_rows(call.tokens),
        weight=call.weight.contiguous(),
        bias=call.bias.contiguous(),
    )


def _arguments(call: Call, mean: Tensor, variance: Tensor) -> dict[str, Any]:
    return {
        "tokens": call.tokens,
        "tokens_strides": call.tokens.stride()[:2],
        "dtype": extension.DTYPE_CODES[call.tokens.dtype],
        "tokens_shape": tuple(call.tokens.shape),
        "weight": call.weight,
        "bias": call.bias,
        "eps": call.eps,
        "has_relu": call.has_relu,
        "has_planes": call.has_planes,
        "mean": mean,
        "variance": variance,
        "num_threads": torch.get_num_threads(),
    }
