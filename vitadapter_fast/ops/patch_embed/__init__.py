# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Patch embedding: image, patch kernel and position table -> tokens with positions added."""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .._arguments import check_types, integers
from .._backends import checked_choice, choose, requested
from .._library import define_autocast, define_gradient, define_op, lower
from . import cpu, cuda, reference, triton
from ._call import Call, check

# On CPU tensors triton can be no more than an interpreter.
BACKENDS = (cuda, cpu, triton, reference)

_ARGS = "Tensor image, Tensor weight, Tensor? bias, Tensor pos_embed, SymInt[] pos_hw, str mode"


def patch_embed(
    image: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    pos_embed: Tensor,
    pos_hw: tuple[int, int],
    *,
    mode: str = "bicubic",
    backend: str | None = None,
) -> Tensor:
    """Project image patches to tokens and add the position table, resized to the token grid.

    Args:
        image: [B, I, H, W], floating. H and W need not divide by p: the remainder is unused.
        weight: Patch kernel, [C, I, p, p] in the dtype of ``image``.
        bias: [C] in the dtype of ``image``, or None.
        pos_embed: Position table without its cls row, [pos_h * pos_w, C]; any floating dtype.
        pos_hw: (pos_h, pos_w).
        mode: "bicubic" resizes to the grid size (a = -0.75: what ViT-Adapter does);
            "bicubic_offset" by the factor (size + 0.1) / pos_size (DINOv2 without registers);
            "bicubic_antialias" to the grid size with antialias (a = -0.5: DINOv2 with registers).
            A table that fits the grid is added as it is.
        backend: A name, or None for the first that can run.

    Returns:
        [B, (H // p) * (W // p), C] in the promoted dtype of ``image`` and ``pos_embed``.

    Raises:
        ValueError: A shape, dtype, device or the mode disagrees.
        BackendUnavailable: The named backend cannot run; says why.

    Source: Dosovitskiy et al. 2021, arXiv:2010.11929; modes: Chen et al. 2022, arXiv:2205.08534 and
        Oquab et al. 2023, arXiv:2304.07193.
    """
    op = "patch_embed"
    check_types(
        op, backend, may_be_none="bias", image=image, weight=weight, bias=bias, pos_embed=pos_embed
    )
    hw = integers(op, "pos_hw", pos_hw)
    # The mode is checked where compilers check it too; there torch wants a string.
    return _forward(image, weight, bias, pos_embed, hw, str(mode), backend=backend)  # type: ignore[no-any-return]


def _choose(call: Call, backend: str | None) -> ModuleType:
    return choose("patch_embed", BACKENDS, call, backend)


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
    h, w = call.grid_hw
    return call.image.new_empty(
        (call.image.shape[0], h * w, call.weight.shape[0]),
        dtype=torch.promote_types(call.image.dtype, call.pos_embed.dtype),
    )


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
    return [
        tensor.new_empty(tensor.shape) if need else grad_out.new_empty(0)
        for tensor, need in zip(args[:4], needs, strict=True)
    ]


def _save(ctx: Any, inputs: Any, keyword_only_inputs: Any, output: Tensor) -> None:
    *tensors, ctx.pos_hw, ctx.mode = inputs
    ctx.backend = requested(keyword_only_inputs["backend"])
    ctx.save_for_backward(*tensors)


def _gradient(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors
    needs = [
        need and tensor is not None
        for need, tensor in zip(ctx.needs_input_grad[:4], tensors, strict=True)
    ]
    grads = _backward(grad_out, *tensors, ctx.pos_hw, ctx.mode, needs=needs, backend=ctx.backend)
    kept = [grad if need else None for grad, need in zip(grads, needs, strict=True)]
    return (*kept, None, None)


def _cast(dtype: torch.dtype, args: Sequence[Any]) -> Sequence[Any]:
    image, weight, bias, *rest = args
    # The table keeps its dtype, so the residual stream stays float32 as in the original.
    bias = None if bias is None else lower(bias, dtype)
    return (lower(image, dtype), lower(weight, dtype), bias, *rest)


_forward = define_op(f"patch_embed({_ARGS}, *, str? backend=None) -> Tensor", _run, _fake, _chosen)
_backward = define_op(
    f"patch_embed_backward(Tensor grad_out, {_ARGS}, *, bool[] needs, str? backend=None)"
    " -> Tensor[]",
    _run_backward,
    _fake_backward,
    _chosen_backward,
)
define_gradient(_forward, _save, _gradient)
define_autocast(_forward, _cast)
