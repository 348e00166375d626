# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Batch norm of tokens in training, with ReLU and a change of layout: tokens in, normalized out.

On GPUs torch's own layers do this; the op has no backend there.
"""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .._arguments import check_types
from .._backends import checked_choice, choose, name_of, requested
from .._library import define_gradient, define_op
from . import cpu, reference
from ._call import Call, check, new_outputs

BACKENDS = (cpu, reference)

_ARGS = "Tensor tokens, Tensor weight, Tensor bias, float eps, bool has_relu, bool has_planes"


def batch_norm(
    tokens: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-5,
    *,
    has_relu: bool = False,
    has_planes: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize every channel by its mean and variance over all tokens of the batch.

    Args:
        tokens: [B, N, C]: a map that is channels last; float32, float16, bfloat16 or float64.
        weight: [C], float32; float64 for float64 tokens.
        bias: [C], in the dtype of ``weight``.
        eps: Added to the variance.
        has_relu: Whether ReLU follows.
        has_planes: Whether the result is [B, C, N], a map that is contiguous, instead of [B, N, C].
        backend: A name, or None for the first that can run.

    Returns:
        The result in the dtype of ``tokens``; mean and (biased) variance of each channel, [C], in
        the dtype of ``weight``, without gradients. Saved for backward are the inputs, mean and
        variance, but not the result: ReLU's part is computed anew.

    Raises:
        ValueError: A shape, dtype or device disagrees.
        BackendUnavailable: The named backend cannot run; says why.

    Source: Ioffe and Szegedy 2015, arXiv:1502.03167.
    """
    check_types("batch_norm", backend, tokens=tokens, weight=weight, bias=bias)
    result: tuple[Tensor, Tensor, Tensor] = _forward(
        tokens, weight, bias, float(eps), bool(has_relu), bool(has_planes), backend=backend
    )
    return result


def _choose(call: Call, backend: str | None) -> ModuleType:
    return choose("batch_norm", BACKENDS, call, backend)


def _chosen(*args: Any, backend: str | None = None) -> ModuleType:
    return _choose(Call(*args), backend)


def _chosen_backward(
    grad_out: Tensor, mean: Tensor, variance: Tensor, *args: Any, backend: str | None = None
) -> ModuleType:
    return _chosen(*args, backend=backend)


def _run(*args: Any, backend: str | None = None) -> tuple[Tensor, Tensor, Tensor]:
    call = Call(*args)
    return checked_choice(check, _choose, call, backend).forward(call)  # type: ignore[no-any-return]


def _fake(*args: Any, backend: str | None = None) -> tuple[Tensor, Tensor, Tensor]:
    call = Call(*args)
    check(call)
    return new_outputs(call)


def _run_backward(
    grad_out: Tensor, mean: Tensor, variance: Tensor, *args: Any, backend: str | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    call = Call(*args)
    chosen = checked_choice(check, _choose, call, backend)
    return chosen.backward(call, grad_out, mean, variance)  # type: ignore[no-any-return]


def _fake_backward(
    grad_out: Tensor, mean: Tensor, variance: Tensor, *args: Any, backend: str | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    tokens, weight, bias, *_ = args
    return tokens.new_empty(tokens.shape), torch.empty_like(weight), torch.empty_like(bias)


def _save(ctx: Any, inputs: Any, keyword_only_inputs: Any, output: Any) -> None:
    tokens, weight, bias, *ctx.options = inputs
    # Autograd may run backward in another thread, which does not see the caller's with block.
    name = requested(keyword_only_inputs["backend"])
    ctx.backend = name if name in [name_of(module) for module in BACKENDS] else None
    _, mean, variance = output
    ctx.mark_non_differentiable(mean, variance)
    ctx.save_for_backward(tokens, weight, bias, mean, variance)


def _gradient(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    tokens, weight, bias, mean, variance = ctx.saved_tensors
    args = (tokens, weight, bias, *ctx.options)
    grads = _backward(grad_out, mean, variance, *args, backend=ctx.backend)
    return (*grads, None, None, None)


_forward = define_op(
    f"batch_norm({_ARGS}, *, str? backend=None) -> (Tensor out, Tensor mean, Tensor variance)",
    _run,
    _fake,
    _chosen,
)
_backward = define_op(
    f"batch_norm_backward(Tensor grad_out, Tensor mean, Tensor variance, {_ARGS}, *,"
    " str? backend=None) -> (Tensor, Tensor, Tensor)",
    _run_backward,
    _fake_backward,
    _chosen_backward,
)
define_gradient(_forward, _save, _gradient)
