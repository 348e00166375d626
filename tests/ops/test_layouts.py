# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Results and gradients of every backend lie in memory as compilers are told by the op's fake.

The CUDA backends execute on the CPU: test_cuda_on_cpu.py.
"""

from importlib import import_module
from typing import Any

import pytest
import torch
from test_framework import CALLS, OPS, Args
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from vitadapter_fast.ops._backends import name_of


def window_args(dtype: torch.dtype = torch.float64) -> tuple[Any, ...]:
    qkv = torch.randn(1, 12, 3, 2, 8, generator=torch.Generator().manual_seed(0))
    return qkv.to(dtype).requires_grad_(), [3, 4], 3


def norm_args(dtype: torch.dtype = torch.float64) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 6, 4), (4,), (4,))
    made = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    return *(each.requires_grad_() for each in made), 1e-5, False, True


ALL: dict[str, tuple[Any, Args]] = {
    **CALLS,
    "window_attention": (OPS.window_attention.default, window_args),
    "batch_norm": (OPS.batch_norm.default, norm_args),
}
DTYPES = (torch.float32, torch.bfloat16)
# Inputs that are as wide as what is summed: parameters of the norm, tables of rope.
WIDE = {"batch_norm": (1, 2), "rope": (1,)}


def names_of_backends(op: str) -> list[str]:
    module = import_module(f"vitadapter_fast.ops.{op.removesuffix('_grid')}")
    return [name_of(backend) for backend in module.BACKENDS]


def check(name: str, backend: str, dtype: torch.dtype) -> None:
    op, make = ALL[name]
    args = tuple(
        each.detach().float().requires_grad_(each.requires_grad)
        if index in WIDE.get(name, ())
        else each
        for index, each in enumerate(make(dtype))
    )
    outs = _as_list(op(*args, backend=backend))
    with FakeTensorMode(allow_non_fake_inputs=True):
        told = _as_list(op(*args, backend=backend))
    assert [each.stride() for each in outs] == [each.stride() for each in told]
    inputs = [each for each in args if isinstance(each, Tensor) and each.requires_grad]
    grads = torch.autograd.grad(outs[0], inputs, torch.randn_like(outs[0]))
    assert [each.is_contiguous() for each in grads] == [True] * len(inputs)


def _as_list(result: Any) -> list[Tensor]:
    return list(result) if isinstance(result, (tuple, list)) else [result]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Triton's interpreter
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("name", "backend"),
    [(name, each) for name in ALL for each in names_of_backends(name) if each != "cuda"],
)
def test_every_backend_gives_the_layout_that_compilers_are_told(
    name: str, backend: str, dtype: torch.dtype
) -> None:
    check(name, backend, dtype)
