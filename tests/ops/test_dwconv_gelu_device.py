# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The CUDA and Triton kernels of the depthwise convolution on a device."""

import pytest
import torch
from cases import ALL_CONV, AWKWARD_CONV, REAL_CONV, ConvCase, ConvInputs, make_conv_inputs
from summing import nan_filled_memory
from test_cuda_device import DEVICE, warm_up
from test_dwconv_gelu import DTYPES, case_id, check, cotangent_of, dtype_id, results
from test_dwconv_gelu import (
    test_gelu_is_exact_to_three_units_in_the_last_place as check_gelu,
)
from torch import Tensor

SHAPES = [REAL_CONV[1], AWKWARD_CONV[6]]  # whole vectors of channels, and an odd number

pytestmark = pytest.mark.cuda


def on_device(case: ConvCase, dtype: torch.dtype = torch.float32, seed: int = 0) -> ConvInputs:
    return make_conv_inputs(case, dtype=dtype, device=DEVICE, seed=seed)


def assert_equal(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("case", ALL_CONV, ids=case_id)
def test_output_and_gradients(backend: str, case: ConvCase, dtype: torch.dtype) -> None:
    with nan_filled_memory():
        check(make_conv_inputs(case, dtype=dtype), backend, DEVICE)


def test_gelu_keeps_its_accuracy(backend: str) -> None:
    check_gelu(backend, device=DEVICE)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("case", SHAPES, ids=case_id)
def test_results_are_bit_equal_in_every_run(
    backend: str, case: ConvCase, dtype: torch.dtype
) -> None:
    inputs = on_device(case, dtype)
    first, *others = [results(inputs, backend, cotangent_of(inputs)) for _ in range(8)]
    for other in others:
        assert_equal(other, first)


@pytest.mark.parametrize("case", SHAPES, ids=case_id)
def test_captured_forward_and_backward_replay_on_changed_inputs(
    backend: str, case: ConvCase
) -> None:
    inputs, changed = on_device(case), on_device(case, seed=1)
    cotangent = cotangent_of(inputs).to(DEVICE)
    warm_up(lambda: results(inputs, backend, cotangent))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = results(inputs, backend, cotangent)
    for to, source in zip(inputs.tensors(), changed.tensors(), strict=True):
        to.copy_(source)
    wanted = results(changed, backend, cotangent)
    for _ in range(2):
        graph.replay()
        assert_equal(got, wanted)


@pytest.mark.parametrize("case", SHAPES, ids=case_id)
def test_kernels_wait_for_what_the_callers_stream_did_before(backend: str, case: ConvCase) -> None:
    inputs = on_device(case)
    cotangent = cotangent_of(inputs).to(DEVICE)
    wanted = results(inputs, backend, cotangent)
    late = inputs.map(torch.zeros_like)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)  # about 0.1 s: launches elsewhere would be long over
        for to, source in zip(late.tensors(), inputs.tensors(), strict=True):
            to.copy_(source)
        got = results(late, backend, cotangent)
    side.synchronize()
    assert_equal(got, wanted)


@pytest.mark.parametrize("case", SHAPES, ids=case_id)
def test_forward_and_backward_never_wait_for_the_device(backend: str, case: ConvCase) -> None:
    inputs = on_device(case)
    cotangent = cotangent_of(inputs).to(DEVICE)
    results(inputs, backend, cotangent)  # Triton compiles at the first call
    torch.cuda.set_sync_debug_mode("error")
    try:
        results(inputs, backend, cotangent)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_compiled_without_graph_breaks_gives_the_same(backend: str) -> None:
    leaves = on_device(REAL_CONV[1]).map(lambda tensor: tensor.requires_grad_())

    def run(*tensors: Tensor) -> Tensor:
        return 2 * ConvInputs(leaves.case, *tensors).run(backend)

    got, wanted = torch.compile(run, fullgraph=True)(*leaves.tensors()), run(*leaves.tensors())
    torch.testing.assert_close(got, wanted)
    cotangent = cotangent_of(leaves).to(DEVICE)
    for a, b in zip(
        torch.autograd.grad(got, leaves.tensors(), cotangent),
        torch.autograd.grad(wanted, leaves.tensors(), cotangent),
        strict=True,
    ):
        torch.testing.assert_close(a, b)
