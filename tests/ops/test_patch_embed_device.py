# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Patch embedding on a device: the cases of every backend, graphs, and no waiting."""

import pytest
import torch
from cases import PATCH_CASES, PATCH_MODES, PatchCase, make_patch_inputs
from test_patch_embed import DTYPES, MIXED, case_id, check, cotangent_of, dtype_id, results

from vitadapter_fast.native import cuda_device
from vitadapter_fast.ops import _triton

REASONS = {"cuda": cuda_device.cuda_unavailable_reason(), "triton": _triton.unavailable_reason()}
REAL = PatchCase("l_512", 2, 3, 1024, (512, 512), (16, 16), (37, 37))

pytestmark = [
    pytest.mark.usefixtures("exact_products"),
    pytest.mark.cuda,
    pytest.mark.skipif("not torch.cuda.is_available()", reason="no CUDA device"),
]


@pytest.fixture(params=REASONS)
def backend(request: pytest.FixtureRequest) -> str:
    if (reason := REASONS[request.param]) is not None:
        pytest.skip(reason)
    return str(request.param)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("mode", PATCH_MODES)
@pytest.mark.parametrize("case", [*PATCH_CASES, REAL], ids=case_id)
def test_output_and_gradients(backend: str, case: PatchCase, mode: str, dtype: torch.dtype) -> None:
    check(make_patch_inputs(case, mode, dtype=dtype), backend, "cuda")


@pytest.mark.parametrize(("dtype", "table_dtype"), MIXED, ids=str)
def test_table_of_another_dtype(backend: str, dtype: torch.dtype, table_dtype: torch.dtype) -> None:
    check(make_patch_inputs(PATCH_CASES[5], dtype=dtype, table_dtype=table_dtype), backend, "cuda")


def test_captured_forward_replays_on_another_image(backend: str) -> None:
    inputs = make_patch_inputs(REAL, dtype=torch.float32).map(lambda tensor: tensor.cuda())
    other = make_patch_inputs(REAL, dtype=torch.float32, seed=1).map(lambda tensor: tensor.cuda())
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            inputs.run(backend)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = inputs.run(backend)
    # Another table as well: nothing resized is kept from one call to the next.
    for to, source in zip(inputs.tensors, other.tensors, strict=True):
        assert to is not None and source is not None
        to.copy_(source)
    graph.replay()
    assert torch.equal(out, other.run(backend))


def test_forward_and_backward_never_wait_for_the_device(backend: str) -> None:
    inputs = make_patch_inputs(REAL, dtype=torch.float32).map(lambda tensor: tensor.cuda())
    cotangent = cotangent_of(inputs).cuda()
    results(inputs, backend, cotangent)  # Triton compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        results(inputs, backend, cotangent)
    finally:
        torch.cuda.set_sync_debug_mode("default")
