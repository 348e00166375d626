# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Multi-scale deformable attention: value maps, points, weights -> attended features.

Two entry points share one body. ``ms_deform_attn`` takes points and weights as they are (what
Deformable-DETR calls); ``ms_deform_attn_grid`` takes the raw projections of queries on regular
grids and does the coordinate arithmetic and the softmax inside: neither is written to memory.
"""

import logging
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ...native import tensors
from .._arguments import check_types, flat_pairs
from .._backends import checked_choice, choose, requested
from .._library import define_autocast, define_gradient, define_op, lower
from . import cpu, cuda, reference, triton
from ._call import Call, check, with_heads

# cpu before triton, which runs on CPU tensors too where its interpreter is on.
BACKENDS = (cuda, cpu, triton, reference)
# Where no specialized CUDA kernel takes a call.
_TRITON_BEFORE_CUDA = (cpu, triton, cuda, reference)

_log = logging.getLogger("vitadapter_fast")

_CLASSIC = "Tensor value, SymInt[] level_hw, Tensor locations, Tensor weights"
_GRID = "Tensor value, SymInt[] level_hw, SymInt[] query_hw, Tensor offsets, Tensor logits"


def ms_deform_attn(
    value: Tensor,
    level_hw: Sequence[tuple[int, int]],
    locations: Tensor,
    weights: Tensor,
    *,
    backend: str | None = None,
) -> Tensor:
    """Sum bilinear samples of flattened feature maps at given points.

    Args:
        value: Maps, [B, S, M, D] or [B, S, M * D]; float32, float16, bfloat16 or float64.
        level_hw: (height, width) of each level; products sum to S.
        locations: Points as (x, y), [B, Q, M, L, P, 2]; float32, or float64 with a float64 value.
            0 and 1 are outer pixel edges; maps are zero outside. NaN and infinity read zero.
        weights: Attention, [B, Q, M, L, P]; used as given; float32 or the dtype of ``value``.
        backend: A name, or None for the first that can run.

    Returns:
        [B, Q, M * D] in the dtype of ``value``, accumulated in float32 (float64 for float64).

    Raises:
        ValueError: A shape, dtype or device disagrees.
        BackendUnavailable: The named backend cannot run; says why.

    Source: Zhu et al. 2021, arXiv:2010.04159, eq. 3.
    """
    op = "ms_deform_attn"
    check_types(op, backend, value=value, locations=locations, weights=weights)
    flat = flat_pairs(op, "level_hw", level_hw)
    return _classic(value, flat, locations, weights, backend=backend)  # type: ignore[no-any-return]


def ms_deform_attn_grid(
    value: Tensor,
    level_hw: Sequence[tuple[int, int]],
    query_hw: Sequence[tuple[int, int]],
    offsets: Tensor,
    logits: Tensor,
    *,
    backend: str | None = None,
) -> Tensor:
    """Sum bilinear samples around queries that lie on regular grids, softmax included.

    The query at row i, column j of an (h, w) grid looks at ((j + .5) / w, (i + .5) / h) of every
    level; offsets are added in pixels of that level.

    Args:
        value: Maps, [B, S, M, D] or [B, S, M * D]; float32, float16, bfloat16 or float64.
        level_hw: (height, width) of each level; products sum to S.
        query_hw: (height, width) of each query grid; products sum to Q.
        offsets: (x, y) in pixels of the level, [B, Q, M, L, P, 2]; float32 or the dtype of
            ``value``. Maps are zero outside. NaN and infinity read zero.
        logits: [B, Q, M, L, P]; the softmax runs over L * P jointly; float32 or the dtype of
            ``value``.
        backend: A name, or None for the first that can run.

    Returns:
        [B, Q, M * D] in the dtype of ``value``; coordinates, softmax and sums in float32 (float64
        for float64). Backward recomputes them: only the three inputs are saved.

    Raises:
        ValueError: A shape, dtype or device disagrees.
        BackendUnavailable: The named backend cannot run; says why.

    Source: Zhu et al. 2021, arXiv:2010.04159, eq. 3; grids: Chen et al. 2022, arXiv:2205.08534.
    """
    op = "ms_deform_attn_grid"
    check_types(op, backend, value=value, offsets=offsets, logits=logits)
    flat, queries = flat_pairs(op, "level_hw", level_hw), flat_pairs(op, "query_hw", query_hw)
    return _grid(value, flat, queries, offsets, logits, backend=backend)  # type: ignore[no-any-return]


def _chosen(call: Call, backend: str | None, *, is_backward: bool = False) -> ModuleType:
    is_on_gpu = tensors.device_type(call.value) == "cuda"
    reason = cuda.generic_reason(call, is_backward=is_backward) if is_on_gpu else None
    if reason is None:
        return choose(call.op, BACKENDS, call, backend)
    _log.debug("%s: triton before cuda: %s", call.op, reason)
    return choose(call.op, _TRITON_BEFORE_CUDA, call, backend)


def _chosen_backward(call: Call, backend: str | None) -> ModuleType:
    return _chosen(call, backend, is_backward=True)


def _run(call: Call, backend: str | None) -> Tensor:
    return checked_choice(check, _chosen, call, backend).forward(call)  # type: ignore[no-any-return]


def _run_backward(
    call: Call, grad_out: Tensor, needs: Sequence[bool], backend: str | None
) -> list[Tensor]:
    chosen = checked_choice(check, _chosen_backward, call, backend)
    grads = chosen.backward(call, grad_out, needs)
    # An operator cannot return None: an empty tensor stands for a gradient nobody asked for.
    return [grad_out.new_empty(0) if grad is None else grad for grad in grads]


def _fake(call: Call) -> Tensor:
    check(call)
    B, _, M, D = call.value.shape
    return call.value.new_empty(B, call.points.shape[1], M * D)


def _fake_backward(args: Sequence[Any], needs: Sequence[bool]) -> list[Tensor]:
    tensors = (args[0], *args[-2:])
    return [
        tensor.new_empty(tensor.shape if need else 0)
        for tensor, need in zip(tensors, needs, strict=True)
    ]


def _classic_call(value: Tensor, level_hw: list[int], points: Tensor, weights: Tensor) -> Call:
    return Call("ms_deform_attn", with_heads(value, points), level_hw, [], points, weights)


def _grid_call(
    value: Tensor, level_hw: list[int], query_hw: list[int], points: Tensor, weights: Tensor
) -> Call:
    if not query_hw:
        raise ValueError("ms_deform_attn_grid: query_hw must name at least one (h, w) grid, got []")
    value = with_heads(value, points)
    return Call("ms_deform_attn_grid", value, level_hw, query_hw, points, weights)


def _define(name: str, schema: str, call_of: Any) -> Any:
    """Register one entry point, its backward, fakes, gradient and autocast rule."""

    def run(*args: Any, backend: str | None = None) -> Tensor:
        return _run(call_of(*args), backend)

    def fake(*args: Any, backend: str | None = None) -> Tensor:
        return _fake(call_of(*args))

    def chosen(*args: Any, backend: str | None = None) -> ModuleType:
        return _chosen(call_of(*args), backend)

    def run_backward(
        grad_out: Tensor, *args: Any, needs: Sequence[bool], backend: str | None = None
    ) -> list[Tensor]:
        grads = _run_backward(call_of(*args), grad_out, needs, backend)
        return [grads[0].view(args[0].shape) if needs[0] else grads[0], *grads[1:]]

    def fake_backward(
        grad_out: Tensor, *args: Any, needs: Sequence[bool], backend: str | None = None
    ) -> list[Tensor]:
        return _fake_backward(args, needs)

    def chosen_backward(
        grad_out: Tensor, *args: Any, needs: Sequence[bool], backend: str | None = None
    ) -> ModuleType:
        return _chosen_backward(call_of(*args), backend)

    forward = define_op(f"{name}({schema}, *, str? backend=None) -> Tensor", run, fake, chosen)
    backward = define_op(
        f"{name}_backward(Tensor grad_out, {schema}, *, bool[] needs, str? backend=None)"
        " -> Tensor[]",
        run_backward,
        fake_backward,
        chosen_backward,
    )

    def save(ctx: Any, inputs: Any, keyword_only_inputs: Any, output: Tensor) -> None:
        value, *sizes, points, weights = inputs
        ctx.sizes = sizes
        # Autograd may run backward in another thread, which does not see the caller's with block.
        ctx.backend = requested(keyword_only_inputs["backend"])
        ctx.save_for_backward(value, points, weights)

    def gradient(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        value, points, weights = ctx.saved_tensors
        needed = ctx.needs_input_grad
        count = len(ctx.sizes)
        needs = [needed[0], needed[1 + count], needed[2 + count]]
        grads = backward(
            grad_out, value, *ctx.sizes, points, weights, needs=needs, backend=ctx.backend
        )
        kept = [grad if need else None for grad, need in zip(grads, needs, strict=True)]
        return (kept[0], *[None] * count, *kept[1:])

    def cast(dtype: torch.dtype, args: Sequence[Any]) -> Sequence[Any]:
        value, *sizes, points, weights = args
        # Locations stay float32: rounded to bfloat16 they are up to half a pixel off at width 256.
        points_dtype = dtype if len(sizes) == 2 else torch.float32
        return (
            lower(value, dtype),
            *sizes,
            lower(points, points_dtype),
            lower(weights, dtype),
        )

    define_gradient(forward, save, gradient)
    define_autocast(forward, cast)
    return forward


_classic = _define("ms_deform_attn", _CLASSIC, _classic_call)
_grid = _define("ms_deform_attn_grid", _GRID, _grid_call)
