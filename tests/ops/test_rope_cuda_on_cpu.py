# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernel of the rotary position embedding, executed on the CPU from the same source.

A sanitizer runs this file as well: test_cuda_on_cpu.py.
"""

import pytest
import torch
from cuda_on_cpu import route
from test_rope import CASES, DTYPES, LAYOUTS, Case, case_id, check, check_in_place, dtype_id

from vitadapter_fast.native import extension
from vitadapter_fast.ops.rope import cuda


@pytest.fixture(autouse=True)
def routed(monkeypatch: pytest.MonkeyPatch) -> None:
    route(monkeypatch)


@pytest.mark.usefixtures("nan_filled_memory")
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_output_and_gradients(case: Case, dtype: torch.dtype) -> None:
    check(case, dtype, "cuda")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_id)
def test_memory_layouts(dtype: torch.dtype, layout: str) -> None:
    check(CASES[0], dtype, "cuda", change=LAYOUTS[layout])


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_in_place(case: Case, dtype: torch.dtype) -> None:
    check_in_place(cuda, case, dtype)


def test_more_images_than_a_launch_has_rows() -> None:
    check(Case("", 65537, (1, 1), 0, 1, 4), torch.float32, "cuda")


def test_a_call_too_large_is_refused_before_a_launch() -> None:
    qkv = torch.empty(1, 2**20, 3, 8, 128, device="meta")
    tables = torch.empty(2**11, 2, 32, device="meta")
    reason = cuda.size_reason(cuda.Call(qkv, tables, [2**10, 2**10], False))
    assert str(reason).startswith("it takes at most 2147483647 elements")
    with pytest.raises(ValueError, match="rope: .*missing"):
        extension.launch(
            "rope_cuda",
            qkv=0,
            dtype=0,
            qkv_strides=(0, 0),
            qkv_shape=(1, 1, 1, 4),
            hw=(1, 1),
            tables=0,
            is_inverse=False,
            out=0,
            out_strides=(0, 0),
        )
