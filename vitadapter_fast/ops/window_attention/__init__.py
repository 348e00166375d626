# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Self-attention within windows of a token grid: projected tokens in, attended tokens out.

Windows are read where they lie: nothing is padded, cut into windows or merged. On GPUs the op has
one backend, Triton: its matrix units do all the work.
"""

from torch import Tensor

from .._arguments import check_types, integers
from .._library import define, lower_tensors
from . import cpu, reference, triton
from ._call import Call, backward_flops, check, flops, new_outputs

BACKENDS = (cpu, triton, reference)


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
    side = 0
    if window_size is not None:
        (side,) = integers(op, "window_size", (window_size,))
        if side < 1:
            raise ValueError(
                "window_attention: window_size must be 1 token or more, or None for the whole "
                f"grid, got {window_size}"
            )
    sizes = integers(op, "hw", hw)
    out, _ = _forward(qkv, sizes, side, backend=backend)
    return out  # type: ignore[no-any-return]


_forward = define(
    "window_attention",
    "Tensor qkv, SymInt[] hw, SymInt window_size",
    "(Tensor out, Tensor logsumexp)",
    call_of=Call,
    check=check,
    new_outputs=new_outputs,
    flops=flops,
    backward_flops=backward_flops,
    backends=BACKENDS,
    saved=(0, 1),
    lower_all=lower_tensors,
)
