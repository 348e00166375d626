# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""CPU tensors: torch's GEMM, then csrc/patch_embed/resize_add_cpu.cpp adds bias and positions.

The table is resized anew in every call, row by row while the tokens pass. A resized table kept from
call to call would save 0.2 of 1.9 ms (S@512) to 1 of 18 ms (L@1024, 2-core AMD EPYC), and could be
stale: its key would be the table's version, which writes through ``.data`` do not count.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...native import extension, gemm, tensors
from . import _parts
from ._call import Call

_LAUNCHER = "patch_embed_resize_add_cpu"


def unsupported_reason(call: Call) -> str | None:
    """Return why the CPU kernels cannot run this call, or None."""
    if not tensors.is_on_cpu(call.image):
        return f"it runs on CPU tensors, got {call.image.device}"
    return extension.unavailable_reason() or _parts.size_reason(call)


def forward(call: Call) -> Tensor:
    """Return the tokens, [B, h * w, C] in the promoted dtype of image and table."""
    # torch's copy of the patches takes 0.9 ms of 18 for L at 1024 x 1024 (2-core AMD EPYC).
    tokens = gemm.linear(_parts.columns(call), _parts.kernel_matrix(call))
    return _parts.add_positions(_LAUNCHER, call, tokens, num_threads=torch.get_num_threads())


def backward(call: Call, grad_out: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
    """Return the gradients of image, weight, bias and table; None where ``needs`` says so."""
    return _parts.gradients(call, grad_out, needs, _parts.columns, _table_gradient)


def _table_gradient(call: Call, grad_out: Tensor) -> Tensor:
    return _parts.table_gradient(_LAUNCHER, call, grad_out, num_threads=torch.get_num_threads())
