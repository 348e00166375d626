# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Batch norm of tokens in training, with ReLU and a change of layout: tokens in, normalized out.

On GPUs torch's own layers do this; the op has no backend there.
"""

from torch import Tensor

from .._arguments import check_types
from .._flops import none
from .._library import define
from . import cpu, reference
from ._call import Call, check, new_outputs

BACKENDS = (cpu, reference)


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


_forward = define(
    "batch_norm",
    "Tensor tokens, Tensor weight, Tensor bias, float eps, bool has_relu, bool has_planes",
    "(Tensor out, Tensor mean, Tensor variance)",
    call_of=Call,
    check=check,
    new_outputs=new_outputs,
    flops=none,
    backward_flops=none,
    backends=BACKENDS,
    saved=(1, 2),
)
