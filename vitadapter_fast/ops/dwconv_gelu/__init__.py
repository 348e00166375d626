# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Depthwise 3 x 3 convolution of a token pyramid, GELU fused: tokens in, tokens out.

The tokens of all grids stay where they are: nothing is split, transposed or concatenated.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .._arguments import check_types, flat_pairs
from .._backends import checked_choice, choose, requested
from .._library import define_autocast, define_gradient, define_op, lower
from . import cpu, cuda, reference, triton
from ._call import Call, check

BACKENDS = (cuda, cpu, triton, reference)

_ARGS = "Tensor tokens, SymInt[] grid_hw, Tensor weight, Tensor? bias"


def dwconv_gelu(
    tokens: Tensor,
    grid_hw: Sequence[tuple[int, int]],
    weight: Tensor,
    bias: Tensor | None,
    *,
    backend: str | None = None,
) -> Tensor:
    """Convolve every grid of tokens with one depthwise 3 x 3 kernel, then apply the exact GELU.

    Args:
        tokens: The grids one after the other, row by row, [B, N, C]; float32, float16, bfloat16 or
            float64.
        grid_hw: (height, width) of each grid; products sum to N. Grids are zero outside.
        weight: [C, 1, 3, 3] in the dtype of ``tokens``.
        bias: [C] in the dtype of ``tokens``, or None.
        backend: A name, or None for the first that can run.

    Returns:
        [B, N, C] in the dtype of ``tokens``, computed in float32 (float64 for float64). Backward
        recomputes what goes into GELU: only the inputs are saved.

    Raises:
        ValueError: A shape, dtype or device disagrees.
        BackendUnavailable: The named backend cannot run; says why.

    Source: Chen et al. 2022, arXiv:2205.08534 (its convolutional feed-forward); GELU: Hendrycks and
        Gimpel 2016, arXiv:1606.08415.
    """
    op = "dwconv_gelu"
    check_types(op, backend, may_be_none="bias", tokens=tokens, weight=weight, bias=bias)
    flat = flat_pairs(op, "grid_hw", grid_hw)
    return _forward(tokens, flat, weight, bias, backend=backend)  # type: ignore[no-any-return]


def _choose(call: Call, backend: str | None) -> ModuleType:
    return choose("dwconv_gelu", BACKENDS, call, backend)


def _chosen(*args: Any, backend: str | None = None) -> ModuleType:
    return _choose(Call(*args), backend)


def _chosen_backward(
    grad_out: Tensor, *args: Any, needs: Sequence[bool], backend: str | None = None
) -> ModuleType:
    return _chosen(*args, backend=backend)


def _run(*args: Any, backend: str | None = None) -> Tensor:
    call = Call(*args)
    return checked_choice(check, _choose, call, backend).forward(call)  # type: ignore[no-any-return]


def _fake(*args: Any, backend: str | None = None) -> Tensor:
    call = Call(*args)
    check(call)
    return call.tokens.new_empty(call.tokens.shape)


def _run_backward(
    grad_out: Tensor, *args: Any, needs: Sequence[bool], backend: str | None = None
) -> list[Tensor]:
    call = Call(*args)
    grads = checked_choice(check, _choose, call, backend).backward(call, grad_out, needs)
    # An operator cannot return None: an empty tensor stands for a gradient nobody asked for.
    return [grad_out.new_empty(0) if grad is None else grad for grad in grads]


def _fake_backward(
    grad_out: Tensor, *args: Any, needs: Sequence[bool], backend: str | None = None
) -> list[Tensor]:
    tokens, _, weight, bias = args
    return [
        tensor.new_empty(tensor.shape) if need else grad_out.new_empty(0)
        for tensor, need in zip((tokens, weight, bias), needs, strict=True)
    ]


def _save(ctx: Any, inputs: Any, keyword_only_inputs: Any, output: Tensor) -> None:
    tokens, ctx.grid_hw, weight, bias = inputs
    # Autograd may run backward in another thread, which does not see the caller's with block.
    ctx.backend = requested(keyword_only_inputs["backend"])
    ctx.save_for_backward(tokens, weight, bias)


def _gradient(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    tokens, weight, bias = ctx.saved_tensors
    needs_tokens, _, needs_weight, needs_bias = ctx.needs_input_grad[:4]
    needs = [needs_tokens, needs_weight, needs_bias and bias is not None]
    grads = _backward(grad_out, tokens, ctx.grid_hw, weight, bias, needs=needs, backend=ctx.backend)
    kept = [grad if need else None for grad, need in zip(grads, needs, strict=True)]
    return kept[0], None, kept[1], kept[2]


def _cast(dtype: torch.dtype, args: Sequence[Any]) -> Sequence[Any]:
    tokens, grid_hw, weight, bias = args
    bias = None if bias is None else lower(bias, dtype)
    return lower(tokens, dtype), grid_hw, lower(weight, dtype), bias


_forward = define_op(f"dwconv_gelu({_ARGS}, *, str? backend=None) -> Tensor", _run, _fake, _chosen)
_backward = define_op(
    f"dwconv_gelu_backward(Tensor grad_out, {_ARGS}, *, bool[] needs, str? backend=None)"
    " -> Tensor[]",
    _run_backward,
    _fake_backward,
    _chosen_backward,
)
define_gradient(_forward, _save, _gradient)
define_autocast(_forward, _cast)
