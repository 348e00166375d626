# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A linear layer whose weights have 8 bits: tokens in, projected tokens out.

Tokens are rounded as they come, each to 256 steps of its own; weights once, each channel to 255
steps of its own. The kernel multiplies integers, and their sums are exact.
"""

import torch
from torch import Tensor

from .._arguments import FLOATS, check_types
from .._library import define
from . import cpu, reference
from ._call import CHANNELS, GROUP, Call, backward_flops, check, flops, new_outputs

BACKENDS = (cpu, reference)


def int8_linear(
    x: Tensor,
    weight: Tensor,
    scales: Tensor,
    bias: Tensor | None = None,
    *,
    plus: Tensor | None = None,
    has_gelu: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Return ``plus + x @ (scales * weight).T + bias`` with x, or its GELU, rounded to 8 bits.

    With low = min(0, x) and high = max(0, x) over a token, a step is (high - low) / 255, and each
    number of the token is rounded to the nearest whole step. A token with a number that is not
    finite gives NaN; but GELU of -infinity may be 0.

    Args:
        x: Tokens, [..., K]; float32, float16, bfloat16 or float64. K is 1 to 65536.
        weight: What ``int8_weight`` returns, int8, [ceil(C / 16), ceil(K / 4), 16, 4].
        scales: What a weight of 1 stands for, float32, [C].
        bias: float32, [C], or None.
        plus: Added to the result, [..., C] in the dtype of ``x``, or None.
        has_gelu: Whether GELU of x, exact, is multiplied.
        backend: A name, or None for the first that can run.

    Returns:
        [..., C] in the dtype of ``x``, computed in float32, or in float64 with float64 ``x``; the
        kernel sums products as integers. Autocast changes nothing. Gradients are those of ``x`` and
        ``plus``, as if nothing were rounded but the weight.

    Raises:
        TypeError: An argument is of another type.
        ValueError: A shape, dtype or device disagrees, or scales or bias require gradients.
        BackendUnavailable: The named backend cannot run; says why.

    Source: Jacob et al. 2018, arXiv:1712.05877, with scales for each token and each channel;
    gradients: Bengio et al. 2013, arXiv:1308.3432.
    """
    op = "int8_linear"
    check_types(op, backend, x=x, weight=weight, scales=scales)
    check_types(op, backend, may_be_none="bias", bias=bias)
    check_types(op, backend, may_be_none="plus", plus=plus)
    for name, tensor in (("scales", scales), ("bias", bias)):
        if tensor is not None and tensor.requires_grad:
            raise ValueError(f"{op}: {name} must not require gradients, which are not computed")
    return _forward(  # type: ignore[no-any-return]
        x, weight, scales, bias, plus, bool(has_gelu), backend=backend
    )


def int8_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round a weight to 8 bits, each output channel to 255 steps of its own.

    Args:
        weight: [C, K], float32, float16, bfloat16 or float64, all finite; or on the meta device.

    Returns:
        The rounded weight as the kernel reads it, int8, [ceil(C / 16), ceil(K / 4), 16, 4]: entry
        (b, g, c, k) is that of channel 16 * b + c and input 4 * g + k, 0 where there is none; and
        what 1 stands for in each channel, float32, [C].

    Raises:
        ValueError: It is no matrix, has no entry or one that is not finite.
    """
    if weight.dim() != 2 or weight.numel() == 0 or weight.dtype not in FLOATS:
        raise ValueError(
            f"int8_weight: weight must be a floating [C, K], got {weight.dtype} of "
            f"{tuple(weight.shape)}"
        )
    wide = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    # No subnormal scale: its inverse would overflow.
    scales = (wide.abs().amax(1) / 127).float().clamp_min(torch.finfo(torch.float32).tiny)
    if not (weight.is_meta or bool(torch.isfinite(scales).all())):
        raise ValueError("int8_weight: weight must be finite in float32, got NaN or infinity in it")
    rounded = torch.round(wide / scales[:, None]).to(torch.int8)
    C, K = weight.shape
    rounded = torch.nn.functional.pad(rounded, (0, -K % GROUP, 0, -C % CHANNELS))
    blocks = rounded.view(-1, CHANNELS, rounded.shape[1] // GROUP, GROUP)
    return blocks.transpose(1, 2).contiguous(), scales


_forward = define(
    "int8_linear",
    "Tensor x, Tensor weight, Tensor scales, Tensor? bias, Tensor? plus, bool has_gelu",
    "Tensor",
    call_of=Call,
    check=check,
    new_outputs=new_outputs,
    flops=flops,
    backward_flops=backward_flops,
    backends=BACKENDS,
)
