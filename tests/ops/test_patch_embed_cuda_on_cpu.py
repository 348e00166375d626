# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels of the patch embedding, executed on the CPU from the same source."""

import pytest
import torch
from cases import PATCH_CASES, PATCH_MODES, PatchCase, make_patch_inputs
from cuda_on_cpu import route
from test_patch_embed import DTYPES, MIXED, case_id, check, dtype_id
from test_patch_embed import test_crop_of_a_wider_image_is_read_where_it_lies as check_crop
from test_patch_embed import test_strided_inputs_give_the_same as check_strided


@pytest.fixture(autouse=True)
def cuda_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    route(monkeypatch)


@pytest.mark.usefixtures("nan_filled_memory")
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("mode", PATCH_MODES)
@pytest.mark.parametrize("case", PATCH_CASES, ids=case_id)
def test_output_and_gradients(case: PatchCase, mode: str, dtype: torch.dtype) -> None:
    check(make_patch_inputs(case, mode, dtype=dtype), "cuda")


@pytest.mark.parametrize(("dtype", "table_dtype"), MIXED, ids=str)
def test_table_of_another_dtype(dtype: torch.dtype, table_dtype: torch.dtype) -> None:
    for case in (PATCH_CASES[0], PATCH_CASES[5]):
        check(make_patch_inputs(case, dtype=dtype, table_dtype=table_dtype), "cuda")


def test_strides() -> None:
    check_strided("cuda")
    check_crop("cuda")


@pytest.mark.parametrize("offset", [0, 1, 2, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_id)
def test_every_width_of_a_copy(dtype: torch.dtype, offset: int) -> None:
    inputs = make_patch_inputs(PATCH_CASES[0], dtype=dtype)
    image = inputs.tensors[0]
    assert image is not None
    shifted = torch.empty(image.numel() + offset, dtype=dtype)[offset:].view_as(image)
    inputs.tensors[0] = shifted.copy_(image)
    check(inputs, "cuda")
