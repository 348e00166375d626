# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels of the patch embedding in Triton's interpreter."""

import pytest
import torch
from cases import PATCH_CASES, PATCH_MODES, PatchCase, make_patch_inputs
from test_patch_embed import DTYPES, MIXED, case_id, check, dtype_id
from test_patch_embed import test_crop_of_a_wider_image_is_read_where_it_lies as check_crop
from test_patch_embed import test_strided_inputs_give_the_same as check_strided

from vitadapter_fast.ops import _triton

pytestmark = pytest.mark.skipif(
    _triton.unavailable_reason() is not None or not _triton.is_interpreted(),
    reason=_triton.unavailable_reason() or "a device is here: see test_cuda_device.py",
)


@pytest.mark.usefixtures("nan_filled_memory")
@pytest.mark.parametrize("mode", PATCH_MODES)
@pytest.mark.parametrize("case", PATCH_CASES, ids=case_id)
def test_output_and_gradients(case: PatchCase, mode: str) -> None:
    check(make_patch_inputs(case, mode, dtype=torch.float32), "triton")


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("case", [PATCH_CASES[4], PATCH_CASES[7]], ids=case_id)
def test_every_dtype(case: PatchCase, dtype: torch.dtype) -> None:
    check(make_patch_inputs(case, dtype=dtype, has_bias=False), "triton")


@pytest.mark.parametrize(("dtype", "table_dtype"), MIXED, ids=str)
def test_table_of_another_dtype(dtype: torch.dtype, table_dtype: torch.dtype) -> None:
    check(make_patch_inputs(PATCH_CASES[7], dtype=dtype, table_dtype=table_dtype), "triton")


def test_strides() -> None:
    check_strided("triton")
    check_crop("triton")
