# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The C++ kernel for CPU tensors: csrc/int8_linear."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...native import extension, tensors, token_rows
from . import reference
from ._call import GROUP, Call, new_outputs

_TILE_ROWS, _SCALE_BYTES = 8, 8  # as in csrc/int8_linear/params.h


def unsupported_reason(call: Call) -> str | None:
    """Return why the CPU kernel cannot run this call, or None."""
    if not tensors.is_on_cpu(call.x):
        return f"it runs on CPU tensors, got {call.x.device}"
    if call.x.dtype == torch.float64:
        return "it computes in float32, got float64"
    return processor_reason()


def processor_reason() -> str | None:
    """Return why no call has a kernel here, or None."""
    module, reason = extension.load()
    if module is None:
        return reason
    if not module.has_int8_products():
        return "this processor, or the compiler of the build, has no AVX512_VNNI"
    return None


def forward(call: Call) -> Tensor:
    """Return the projected tokens, [..., C]."""
    x, weight, scales, bias, plus, has_gelu = call
    if x.dtype != torch.float32:
        plus = None if plus is None else plus.float()
        return forward(call._replace(x=x.float(), plus=plus)).to(x.dtype)
    out = extension.in_huge_pages(new_outputs(call))
    rows, K = out.numel() // scales.shape[0], x.shape[-1]
    tiles = -(-rows // _TILE_ROWS)
    nbytes = tiles * _TILE_ROWS * (-(-K // GROUP) * GROUP + _SCALE_BYTES)
    extension.launch(
        "int8_linear_cpu",
        x=x.contiguous(),
        weight=weight.contiguous(),
        scales=scales.contiguous(),
        bias=None if bias is None else bias.contiguous(),
        plus=None if plus is None else plus.contiguous(),
        has_gelu=has_gelu,
        shape=(rows, K, scales.shape[0]),
        steps=token_rows.kept_bytes(nbytes),
        out=out,
        num_threads=torch.get_num_threads(),
    )
    return out


def backward(call: Call, grad_out: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
    """Return gradients as the reference does: products of float32, by torch."""
    return reference.backward(call, grad_out, needs)
