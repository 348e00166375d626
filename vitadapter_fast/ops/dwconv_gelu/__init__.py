# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Depthwise 3 x 3 convolution of a token pyramid, GELU fused: tokens in, tokens out.

The tokens of all grids stay where they are: nothing is split, transposed or concatenated.
"""

from collections.abc import Sequence

from torch import Tensor

from .._arguments import check_types, flat_pairs
from .._library import define, lower_tensors
from . import cpu, cuda, reference, triton
from ._call import Call, backward_flops, check, flops, new_outputs

BACKENDS = (cuda, cpu, triton, reference)


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


_forward = define(
    "dwconv_gelu",
    "Tensor tokens, SymInt[] grid_hw, Tensor weight, Tensor? bias",
    "Tensor",
    call_of=Call,
    check=check,
    new_outputs=new_outputs,
    flops=flops,
    backward_flops=backward_flops,
    backends=BACKENDS,
    lower_all=lower_tensors,
)
