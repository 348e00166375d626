# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The C++ kernel for CPU tensors: csrc/rope/rope_cpu.cpp."""

import torch
from torch import Tensor

from ...native import extension, tensors
from ...native.tensors import dense_rows
from ._call import Call, new_outputs
from ._pointers import arguments


def unsupported_reason(call: Call) -> str | None:
    """Return why the CPU kernel cannot run this call, or None."""
    if not tensors.is_on_cpu(call.qkv):
        return f"it runs on CPU tensors, got {call.qkv.device}"
    return extension.unavailable_reason()


def forward(call: Call) -> Tensor:
    """Return queries, keys and values, [B, N, 3, M, D], of which the first two are rotated."""
    return _run(call._replace(qkv=dense_rows(call.qkv)), extension.in_huge_pages(new_outputs(call)))


def rotate_in_place(call: Call) -> None:
    """Rotate queries and keys, dense from their third dimension on, where they lie."""
    _run(call, call.qkv)


def _run(call: Call, out: Tensor) -> Tensor:
    extension.launch("rope_cpu", **arguments(call, out), num_threads=torch.get_num_threads())
    return out
