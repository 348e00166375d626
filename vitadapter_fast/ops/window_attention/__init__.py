# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Self-attention within windows of a token grid: projected tokens in, attended tokens out.

Windows are read where they lie: nothing is padded, cut into windows or merged. On GPUs the op has
one backend, Triton: its matrix units do all the work.
"""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .._arguments import check_types, integers
from .._backends import checked_choice, choose, name_of, requested
from .._library import define_autocast, define_gradient, define_op, lower
from . import cpu, reference, triton
from ._call import Call, check, new_outputs

BACKENDS = (cpu, triton, reference)

_ARGS = "Tensor qkv, SymInt[] hw, SymInt window_size"


def window_attention(
    qkv: Tensor, hw: tuple[int, int], window_size: int | None, *, backend: str | None = None
) -> Tensor:
    """Attend among the tokens of every square window of a grid, with several heads.

    A grid that windows do not divide is padded with zeros on the right and bottom. Padding keys are
    not masked: each has logit 0 and value 0 and takes its share of the softmax.

    Args:
        qkv: Queries, keys and values of the tokens, row by row of the grid, [B, h * w, 3, M, D];
            float32, float16, bfloat16 or float64.
        hw: (h, w) of the grid.
        window_size: Side of a window in tokens; windows start at the upper left corner. None: one
            window of the whole grid, unpadded.
        backend: A name, or None for the first that can run.

    Returns:
        [B, h * w, M * D] in the dtype of ``qkv``: softmax(q k^T / sqrt(D)) v of each window and
        head, summed in float32 (float64 for float64). Saved for backward are ``qkv``, the result
        and one number for each token and head.

    Raises:
        ValueError: A shape, dtype or size disagrees.
        BackendUnavailable: The named backend cannot run; says why.

    Source: Li et al. 2022, arXiv:2203.16527, sec. 3; recomputation: Dao et al. 2022,
        arXiv:2205.14135.
    """
    op = "window_attention"
    check_types(op, backend, qkv=qkv)
    if window_size is not None and integers(op, "window_size", (window_size,))[0] < 1:
        raise ValueError(
            "window_attention: window_size must be 1 token or more, or None for the whole grid, "
            f"got {window_size}"
        )
    sizes = integers(op, "hw", hw)
    out, _ = _forward(qkv, sizes, window_size or 0, backend=backend)
    return out  # type: ignore[no-any-return]


def _choose(call: Call, backend: str | None) -> ModuleType:
    return choose("window_attention", BACKENDS, call, backend)


def _chosen(*args: Any, backend: str | None = None) -> ModuleType:
    return _choose(Call(*args), backend)


def _chosen_backward(
    grad_out: Tensor, out: Tensor, logsumexp: Tensor, *args: Any, backend: str | None = None
) -> ModuleType:
    return _chosen(*args, backend=backend)


def _run(*args: Any, backend: str | None = None) -> tuple[Tensor, Tensor]:
    call = Call(*args)
    return checked_choice(check, _choose, call, backend).forward(call)  # type: ignore[no-any-return]


def _fake(*args: Any, backend: str | None = None) -> tuple[Tensor, Tensor]:
    call = Call(*args)
    check(call)
    return new_outputs(call)


def _run_backward(
    grad_out: Tensor, out: Tensor, logsumexp: Tensor, *args: Any, backend: str | None = None
) -> Tensor:
    call = Call(*args)
    chosen = checked_choice(check, _choose, call, backend)
    return chosen.backward(call, grad_out, out, logsumexp)  # type: ignore[no-any-return]


def _fake_backward(
    grad_out: Tensor, out: Tensor, logsumexp: Tensor, *args: Any, backend: str | None = None
) -> Tensor:
    call = Call(*args)
    return call.qkv.new_empty(call.qkv.shape)


def _save(ctx: Any, inputs: Any, keyword_only_inputs: Any, output: tuple[Tensor, Tensor]) -> None:
    qkv, ctx.hw, ctx.window_size = inputs
    # Autograd may run backward in another thread, which does not see the caller's with block.
    name = requested(keyword_only_inputs["backend"])
    ctx.backend = name if name in [name_of(module) for module in BACKENDS] else None
    out, logsumexp = output
    ctx.mark_non_differentiable(logsumexp)
    ctx.save_for_backward(qkv, out, logsumexp)


def _gradient(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    qkv, out, logsumexp = ctx.saved_tensors
    grad = _backward(grad_out, out, logsumexp, qkv, ctx.hw, ctx.window_size, backend=ctx.backend)
    return grad, None, None


def _cast(dtype: torch.dtype, args: Any) -> Any:
    qkv, hw, window_size = args
    return lower(qkv, dtype), hw, window_size


_forward = define_op(
    f"window_attention({_ARGS}, *, str? backend=None) -> (Tensor out, Tensor logsumexp)",
    _run,
    _fake,
    _chosen,
)
_backward = define_op(
    f"window_attention_backward(Tensor grad_out, Tensor out, Tensor logsumexp, {_ARGS}, *,"
    " str? backend=None) -> Tensor",
    _run_backward,
    _fake_backward,
    _chosen_backward,
)
define_gradient(_forward, _save, _gradient)
define_autocast(_forward, _cast)
