# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels of the patch embedding in Triton's interpreter."""

import mmap

import pytest
import torch
from cases import PATCH_CASES, PATCH_MODES, PatchCase, make_patch_inputs
from test_patch_embed import DTYPES, MIXED, case_id, check, dtype_id
from test_patch_embed import test_crop_of_a_wider_image_is_read_where_it_lies as check_crop
from test_patch_embed import test_strided_inputs_give_the_same as check_strided

from vitadapter_fast.ops import _triton, patch_embed

pytestmark = pytest.mark.skipif(
    _triton.unavailable_reason() is not None or not _triton.is_interpreted(),
    reason=_triton.unavailable_reason() or "a device is here: see test_cuda_device.py",
)

# Every case in the mode of ViT-Adapter, every mode for some: antialias takes the interpreter long.
CALLS = [(case, "bicubic") for case in PATCH_CASES]
SMALL = [*PATCH_CASES[2:4], *PATCH_CASES[6:8]]
CALLS += [(case, mode) for case in SMALL for mode in PATCH_MODES[1:]]


@pytest.mark.usefixtures("nan_filled_memory")
@pytest.mark.parametrize(("case", "mode"), CALLS, ids=lambda part: getattr(part, "name", part))
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


@pytest.mark.parametrize("axis", ["channels", "rows", "columns"])
def test_images_whose_pixels_lie_far_apart_are_read_where_they_lie(axis: str) -> None:
    # As in a permuted clip, whose frames lie between two channels. What is not touched takes no
    # memory; an offset of 32 bits would wrap to within it.
    far, near = 1_000_000_000, 64
    memory = mmap.mmap(-1, 2 * 2**33, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)
    strides = {"channels": (far, 8, 1), "rows": (near, far, 1), "columns": (near, 1, far)}[axis]
    flat = torch.frombuffer(memory, dtype=torch.bfloat16)
    image = flat.as_strided((1, 4, 4, 4), (1, *strides), storage_offset=2**31 + 2**30)
    image.copy_(torch.arange(64).view(1, 4, 4, 4))
    patch, table = torch.eye(16, 64, dtype=torch.bfloat16).view(16, 4, 4, 4), torch.zeros(1, 16)
    patch = patch.flip(1, 2, 3)  # the last elements of the image
    out = patch_embed(image, patch, None, table.bfloat16(), (1, 1), backend="triton")
    wanted = patch_embed(image.contiguous(), patch, None, table.bfloat16(), (1, 1))
    assert torch.equal(out, wanted) and out.any()


def test_tuned_rows_below_what_matrix_units_take_are_raised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried = []
    monkeypatch.setattr(_triton, "_tuned", {})
    monkeypatch.setattr(_triton, "_time_ms", lambda run, config: config.rows)
    launch = _triton.launch

    def record(kernel: object, **arguments: object) -> None:
        tried.append(arguments["BM"])
        launch(kernel, **arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(_triton, "launch", record)
    with _triton.tuning():
        check(make_patch_inputs(PATCH_CASES[7], dtype=torch.float32), "triton")
    assert next(iter(_triton._tuned.values())).rows == 8 and tried[0] == 16
