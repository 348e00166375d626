# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels of the depthwise convolution: in the interpreter, and compiled for GPUs."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import AWKWARD_CONV, ConvCase, ConvInputs, make_conv_inputs
from test_dwconv_gelu import DTYPES, case_id, check, cotangent_of, dtype_id, results
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

from vitadapter_fast.ops import _triton
from vitadapter_fast.ops.dwconv_gelu import _call
from vitadapter_fast.ops.dwconv_gelu import triton as backend

pytest.importorskip("triton")

IS_INTERPRETED = _triton.is_interpreted()
interpreted = pytest.mark.skipif(
    not IS_INTERPRETED, reason="a device is here: see test_dwconv_gelu_device.py"
)
# The interpreter takes seconds for what a GPU does in microseconds.
SMALL = [case for case in AWKWARD_CONV if case.num_tokens * case.channels < 2500]


@interpreted
@pytest.mark.usefixtures("nan_filled_memory")
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("case", SMALL, ids=case_id)
def test_output_and_gradients(case: ConvCase, dtype: torch.dtype) -> None:
    check(make_conv_inputs(case, dtype=dtype), "triton")


@interpreted
def test_several_strips_and_tiles_of_several_images() -> None:
    check(make_conv_inputs(ConvCase("tiles", 2, 16, ((19, 17), (2, 3)))), "triton")


@interpreted
def test_strided_and_transposed_inputs() -> None:
    check_strided("triton", AWKWARD_CONV[1])
    check_transposed("triton", AWKWARD_CONV[1])


@interpreted
def test_images_that_are_not_rows_apart_are_copied() -> None:
    inputs = make_conv_inputs(AWKWARD_CONV[5], dtype=torch.float32)
    memory = torch.zeros(2, inputs.tokens[0].numel() + 3)
    tokens = memory[:, 3:].unflatten(1, inputs.tokens.shape[1:]).copy_(inputs.tokens)
    assert tokens.stride(0) % tokens.stride(1) != 0
    wanted = results(inputs, "triton", cotangent_of(inputs))
    inputs.tokens = tokens
    got = results(inputs, "triton", cotangent_of(inputs))
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)


@interpreted
def test_gelu_keeps_its_accuracy() -> None:
    check_gelu("triton", count=2048)
    check_huge("triton")


@interpreted
def test_nan_spreads_as_far_as_it_must() -> None:
    check_nan("triton")
    check_nan_gradients("triton")


@interpreted
@pytest.mark.usefixtures("nan_filled_memory")
@pytest.mark.parametrize("case", [AWKWARD_CONV[5], AWKWARD_CONV[8]], ids=case_id)
def test_gradients_that_nobody_needs(case: ConvCase) -> None:
    check_needs("triton", case)


def test_calls_beyond_a_launch_are_left_to_another_backend(monkeypatch: Any) -> None:
    monkeypatch.setattr(_triton, "unsupported_reason", lambda tensor: None)

    def reason(images: int, grids: int) -> str | None:
        tokens, weight = torch.empty(images, grids, 8), torch.empty(8, 1, 3, 3)
        return backend.unsupported_reason(_call.Call(tokens, [1, 1] * grids, weight, None))

    assert reason(65535, 16) is None
    assert "at most 65535 images" in str(reason(65536, 1))
    assert "at most 16 grids" in str(reason(1, 17))


def launches(channels: int, dtype: torch.dtype) -> dict[str, Any]:
    """Return the kernel and the arguments of every launch of forward and backward, by name."""
    from compile_triton import recorded

    tensors = {"dtype": dtype, "device": "meta"}
    tokens = torch.empty(2, 84, channels, **tensors)  # type: ignore[call-overload]
    weight = torch.empty(channels, 1, 3, 3, **tensors)  # type: ignore[call-overload]
    bias = torch.empty(channels, **tensors)  # type: ignore[call-overload]
    call = _call.Call(tokens, [8, 8, 4, 4, 2, 2], weight, bias)
    with recorded() as found:
        backend.backward(call, torch.empty_like(backend.forward(call)), (True, True, True))
    return found


REGISTERS = {"of gelu": 168, "of slope": 168, "of tokens": 168, "weight_gradient_kernel": 255}


@pytest.mark.skipif(IS_INTERPRETED, reason="runs in a process of its own, which can compile")
@pytest.mark.parametrize(
    ("arch", "channels", "dtype"),
    [(80, 192, torch.bfloat16), (90, 192, torch.bfloat16), (90, 96, torch.float32)],
    ids=lambda value: dtype_id(value) if isinstance(value, torch.dtype) else str(value),
)
def test_kernels_compile_without_spills_and_load_16_bytes(
    arch: int, channels: int, dtype: torch.dtype
) -> None:
    from compile_triton import compiled, usage
    from stub_driver import sm

    found = launches(channels, dtype)
    assert len(found) == 4
    for name, launch in found.items():
        used = usage(compiled(launch, sm(arch)), counts=True)
        bound = next(count for part, count in REGISTERS.items() if part in name)
        assert used["local"] == 0 and used["registers"] <= bound, (name, used)
        assert used["wide_loads"] >= 3, (name, used)


@pytest.mark.skipif(IS_INTERPRETED, reason="runs in a process of its own, which can compile")
def test_compilers_see_the_kernels_and_what_they_write(monkeypatch: pytest.MonkeyPatch) -> None:
    from stub_driver import stub_driver
    from torch._functorch.aot_autograd import aot_export_joint_simple
    from trace_triton import kernels_of

    monkeypatch.setattr(_triton, "unsupported_reason", lambda tensor: None)
    inputs = make_conv_inputs(AWKWARD_CONV[3], dtype=torch.float32)
    leaves = inputs.map(lambda tensor: tensor.requires_grad_())

    def run(*tensors: torch.Tensor) -> tuple[torch.Tensor]:
        return (ConvInputs(inputs.case, *tensors).run("triton"),)

    with stub_driver():
        graph = aot_export_joint_simple(run, tuple(leaves.tensors()), trace_joint=True)
    assert kernels_of(graph) == ["convolve_kernel: out"] * 3 + ["weight_gradient_kernel: partial"]


@pytest.mark.skipif(not IS_INTERPRETED, reason="this process compiles")
def test_kernels_compile_in_a_process_without_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(
        [*command, "-k", "compile_without_spills or compilers_see"],
        env=os.environ | {"TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
