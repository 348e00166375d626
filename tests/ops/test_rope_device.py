# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The CUDA and Triton kernels of the rotary position embedding on a device."""

import pytest
import torch
from summing import nan_filled_memory
from test_cuda_device import DEVICE
from test_rope import CASES, DTYPES, LAYOUTS, Case, case_id, check, check_in_place, dtype_id

from vitadapter_fast.ops.rope import cuda, triton

pytestmark = pytest.mark.cuda


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_output_and_gradients(backend: str, case: Case, dtype: torch.dtype) -> None:
    with nan_filled_memory():
        check(case, dtype, backend, DEVICE)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_id)
def test_memory_layouts(backend: str, dtype: torch.dtype, layout: str) -> None:
    check(CASES[0], dtype, backend, DEVICE, LAYOUTS[layout])


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_in_place(backend: str, case: Case, dtype: torch.dtype) -> None:
    check_in_place({"cuda": cuda, "triton": triton}[backend], case, dtype, DEVICE)
