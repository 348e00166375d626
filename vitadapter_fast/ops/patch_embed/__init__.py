# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Patch embedding: image, patch kernel and position table -> tokens with positions added."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._arguments import check_types, integers
from .._library import define, lower_tensors
from . import cpu, cuda, reference, triton
from ._call import Call, backward_flops, check, flops, new_outputs

# On CPU tensors triton can be no more than an interpreter.
BACKENDS = (cuda, cpu, triton, reference)


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


def _lower_all(dtype: torch.dtype, inputs: Sequence[Any]) -> Sequence[Any]:
    # The table keeps its dtype, so the residual stream stays float32 as in the original.
    return [*lower_tensors(dtype, inputs[:3]), *inputs[3:]]


_forward = define(
    "patch_embed",
    "Tensor image, Tensor weight, Tensor? bias, Tensor pos_embed, SymInt[] pos_hw, str mode",
    "Tensor",
    call_of=Call,
    check=check,
    new_outputs=new_outputs,
    flops=flops,
    backward_flops=backward_flops,
    backends=BACKENDS,
    lower_all=_lower_all,
)
