# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Tokens and weights in; the form in which linear layers are computed out, or why they are not."""

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from ..native import extension, gemm, half_linear, tensors

_AS_IS = nullcontext()


class Form(NamedTuple):
    """How the linear layers of a box are computed, asked once for all of them.

    Attributes:
        dtype: Of what the layers give.
        compute: Of the matrix products.
        wide: Of norms, and of weights until all factors are in them.
        is_ours: Whether kernels of ours normalize: those of float32 on the CPU.
        is_suited: Whether products are of float32 on the CPU, as ``gemm.linear`` asks; then our
            kernels also activate.
        is_half: Whether ``half_linear`` multiplies, which takes matrices in whatever dtype they
            come; all between its products is of ``compute``, float32.
        autocast: Enter it around what runs between the layers: off where products are wider than
            what it asks for.
    """

    dtype: torch.dtype
    compute: torch.dtype
    wide: torch.dtype
    is_ours: bool
    is_suited: bool
    is_half: bool
    autocast: AbstractContextManager[object]


def mode_reason(x: Tensor) -> str | None:
    """Return why linear layers are called here, whatever they are, or None."""
    if tensors.is_recorded():
        return "a compiler or tracer records it, which fuses layers itself"
    if not (torch.is_grad_enabled() or tensors.is_on_cpu(x)):
        # To fold LayerScale into the weights is more work then, for Python too, than one pass over
        # the tokens.
        return "off the CPU nothing is gained where no gradients are recorded"
    return None


def dtype_reason(x: Tensor, weight: Tensor) -> str | None:
    """Return why tokens and weights of these dtypes are not multiplied here, or None."""
    if product_dtypes(x, weight) is None:
        return f"the tokens are {x.dtype} and the weights {weight.dtype}"
    return None


def form_of(x: Tensor, weight: Tensor) -> Form:
    """Return the form for tokens and weights without a ``dtype_reason``."""
    dtypes = product_dtypes(x, weight)
    assert dtypes is not None
    asked, compute = dtypes
    wide = torch.promote_types(weight.dtype, compute)
    is_plain = (
        type(x) is Tensor
        and tensors.is_on_cpu(x)
        and x.numel() > 0
        and extension.load()[0] is not None
    )
    is_ours, is_suited = is_plain and wide is torch.float32, is_plain and compute is torch.float32
    autocast = _AS_IS if compute is asked else tensors.without_autocast()
    is_half = (
        compute is not asked
        and is_suited
        and gemm.is_half(x, asked)
        and weight.dtype in half_linear.DTYPES
    )
    # What nobody keeps for a backward pass is not rounded, unless that is faster.
    dtype = asked if torch.is_grad_enabled() or is_half else compute
    return Form(dtype, compute, wide, is_ours, is_suited, is_half, autocast)


def product_dtypes(x: Tensor, weight: Tensor) -> tuple[torch.dtype, torch.dtype] | None:
    """Return the dtype of a product of tokens or maps and weights, and that of its arithmetic.

    None where those of the two disagree.
    """
    device, wanted = x.device.type, weight.dtype
    asked = x.dtype
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        asked = torch.get_autocast_dtype(device)
        if wanted != torch.float32 or x.dtype not in (asked, wanted):
            return None
    elif asked != wanted:
        return None
    return asked, gemm.compute_dtype(x, asked) if asked in gemm.LOW else asked
