# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels of the depthwise convolution, executed on the CPU from the same source.

A sanitizer runs this file as well: test_cuda_on_cpu.py.
"""

import os

import pytest
import torch
from cases import AWKWARD_CONV, REAL_CONV, ConvCase, ConvInputs, make_conv_inputs
from cuda_on_cpu import route
from test_dwconv_gelu import (
    DTYPES,
    case_id,
    check,
    cotangent_of,
    dtype_id,
    results,
)
from test_dwconv_gelu import (
    test_gelu_is_exact_to_three_units_in_the_last_place as check_gelu,
)
from test_dwconv_gelu import (
    test_gelu_of_huge_and_infinite_sums as check_huge,
)
from test_dwconv_gelu import (
    test_gradients_that_nobody_needs_are_not_computed as check_needs,
)
from test_dwconv_gelu import (
    test_nan_and_infinity_spread_to_the_neighbors_and_no_further as check_nan,
)
from test_dwconv_gelu import (
    test_nan_reaches_the_gradients_that_depend_on_it as check_nan_gradients,
)
from test_dwconv_gelu import (
    test_strided_tokens_and_cotangent_are_read_where_they_lie as check_strided,
)
from test_dwconv_gelu import (
    test_transposed_inputs_and_cotangent_give_the_same as check_transposed,
)

from vitadapter_fast.native import extension
from vitadapter_fast.ops.dwconv_gelu import _call, cuda

# Under a sanitizer the large ones take minutes and show nothing more.
CASES = AWKWARD_CONV if "VITADAPTER_TEST_CUDA_FLAGS" in os.environ else REAL_CONV + AWKWARD_CONV


@pytest.fixture(autouse=True)
def routed(monkeypatch: pytest.MonkeyPatch) -> None:
    route(monkeypatch)


@pytest.mark.usefixtures("nan_filled_memory")
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_output_and_gradients(case: ConvCase, dtype: torch.dtype) -> None:
    check(make_conv_inputs(case, dtype=dtype), "cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_id)
@pytest.mark.parametrize("which", ["tokens", "weight", "bias"])
def test_tensors_that_are_not_aligned_run_in_the_generic_kernels(
    which: str, dtype: torch.dtype
) -> None:
    inputs = make_conv_inputs(AWKWARD_CONV[3], dtype=dtype)
    tensor = getattr(inputs, which)
    shifted = torch.empty(tensor.numel() + 1, dtype=dtype)[1:].view_as(tensor)
    setattr(inputs, which, shifted.copy_(tensor))
    assert shifted.data_ptr() % 16
    check(inputs, "cuda")


def test_strided_and_transposed_inputs() -> None:
    check_strided("cuda")
    check_transposed("cuda")


def test_gelu_keeps_its_accuracy() -> None:
    check_gelu("cuda")
    check_huge("cuda")


def test_nan_spreads_as_far_as_it_must() -> None:
    check_nan("cuda")
    check_nan_gradients("cuda")


@pytest.mark.parametrize("case", [AWKWARD_CONV[3], AWKWARD_CONV[5], AWKWARD_CONV[8]], ids=case_id)
@pytest.mark.usefixtures("nan_filled_memory")
def test_gradients_that_nobody_needs(case: ConvCase) -> None:
    check_needs("cuda", case)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_backward_is_bit_equal_whatever_the_order_of_threads(dtype: torch.dtype) -> None:
    inputs = make_conv_inputs(ConvCase("tiles", 2, 40, ((35, 33), (3, 2))), dtype=dtype)
    runs = [results(inputs, "cuda", cotangent_of(inputs)) for _ in range(3)]
    for name in runs[0]:
        assert all(torch.equal(run[name], runs[0][name]) for run in runs)


def test_calls_beyond_32_bit_indices_are_left_to_another_backend() -> None:
    def reason(tokens: int, grids: int) -> str | None:
        wide = torch.empty(2, tokens * grids, 1024, device="meta")
        weight = torch.empty(1024, 1, 3, 3, device="meta")
        return cuda.size_reason(_call.Call(wide, [1, tokens] * grids, weight, None))

    assert reason(2**17, 15) is None
    assert "2147483647 elements" in str(reason(2**17, 16))
    assert "at most 16 grids" in str(reason(1, 17))


def test_launcher_refuses_sizes_that_disagree(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs: ConvInputs = make_conv_inputs(AWKWARD_CONV[3], dtype=torch.float32)
    from cuda_on_cpu import load

    from vitadapter_fast.ops.dwconv_gelu._pointers import arguments

    monkeypatch.setattr(extension, "load", lambda: (load(), ""))
    call = _call.Call(inputs.tokens, [2, 3], inputs.weight, inputs.bias)
    for name in ("dwconv_gelu_forward_cuda", "dwconv_gelu_forward_cpu"):
        with pytest.raises(ValueError, match="grids do not add up to the tokens"):
            extension.launch(name, **arguments(call), out=inputs.tokens)
