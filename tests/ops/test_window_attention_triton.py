# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels of the attention within windows: interpreted, and compiled for GPUs."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import AWKWARD_WINDOW, WindowCase, make_qkv
from summing import nan_filled_memory
from test_window_attention import DTYPES, NAMES, case_id, check, cotangent_of, dtype_id, results
from test_window_attention import (
    test_even_and_very_uneven_softmax as check_spread,
)
from test_window_attention import (
    test_logits_far_below_those_of_the_padding_vanish as check_far_below,
)
from test_window_attention import (
    test_nan_and_infinity_reach_what_they_must_and_no_other_window as check_bad,
)
from test_window_attention import (
    test_padding_keys_take_their_share_of_the_softmax as check_padding,
)
from test_window_attention import (
    test_saved_logsumexp_counts_the_padding as check_logsumexp,
)
from test_window_attention import (
    test_strided_inputs_and_cotangent_are_read_where_they_lie as check_strided,
)
from test_window_attention import (
    test_transposed_inputs_and_cotangent_give_the_same as check_transposed,
)

from vitadapter_fast.ops import _triton
from vitadapter_fast.ops._triton import Config
from vitadapter_fast.ops.window_attention import _call
from vitadapter_fast.ops.window_attention import triton as backend

pytest.importorskip("triton")
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::DeprecationWarning")

IS_INTERPRETED = _triton.is_interpreted()
interpreted = pytest.mark.skipif(not IS_INTERPRETED, reason="a device is here")


# The interpreter takes seconds for what a GPU does in microseconds.
SMALLER: dict[str, dict[str, Any]] = {"prime_sizes": {"batch": 1, "heads": 1}}
SMALL = [replace(case, **SMALLER.get(case.name, {})) for case in AWKWARD_WINDOW]


@interpreted
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("case", SMALL, ids=case_id)
def test_output_and_gradient(case: WindowCase, dtype: torch.dtype) -> None:
    with nan_filled_memory():
        check(case, dtype, "triton")


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_id)
def test_heads_and_windows_of_the_models(dtype: torch.dtype) -> None:
    with nan_filled_memory():
        check(WindowCase("model", 1, 1, 64, (16, 18), 14), dtype, "triton")


@interpreted
def test_softmax_of_any_spread_and_with_padding() -> None:
    # Not beyond logits of 100: backward rounds them in another order than forward.
    for spread in (0.0, 5.0):
        check_spread("triton", spread, SMALL[3])
    check_padding("triton")
    check_far_below("triton")
    check_logsumexp("triton", SMALL[3])


@interpreted
def test_keys_far_below_the_padding_have_finite_gradients() -> None:
    # Of a window without padding, logsumexp is low; rows past the last key must not see it.
    case = WindowCase("low", 1, 1, 16, (3, 3), 3)
    qkv = make_qkv(case, dtype=torch.float32)
    qkv[:, :, 0], qkv[:, :, 1] = 10.0, -10.0
    for name, got in results(case, qkv, "triton", cotangent_of(case, qkv.dtype)).items():
        wanted = results(case, qkv, "reference", cotangent_of(case, qkv.dtype))[name]
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


@interpreted
def test_strided_and_transposed_inputs() -> None:
    check_strided("triton", AWKWARD_WINDOW[1])
    check_transposed("triton", AWKWARD_WINDOW[1])


@interpreted
def test_images_that_are_not_rows_apart_are_copied() -> None:
    case = AWKWARD_WINDOW[1]
    dense = make_qkv(case, dtype=torch.float32)
    memory = torch.zeros(2, dense[0].numel() + 3)
    qkv = memory[:, 3:].unflatten(1, dense.shape[1:]).copy_(dense)
    assert qkv.stride(0) % qkv.stride(1) != 0
    cotangent = cotangent_of(case, torch.float32)
    wanted = results(case, dense, "triton", cotangent)
    got = results(case, qkv, "triton", cotangent)
    assert all(torch.equal(got[name], wanted[name]) for name in NAMES)


@interpreted
@pytest.mark.parametrize("part", [0, 1, 2], ids=["query", "key", "value"])
def test_nan_spreads_as_far_as_it_must(part: int) -> None:
    check_bad("triton", float("nan"), part)


@interpreted
@pytest.mark.parametrize("rows", [8, 16, 128])
def test_launch_parameters_do_not_change_results(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitadapter_fast.ops.window_attention import _triton_kernels

    monkeypatch.setattr(_triton_kernels, "CONFIGS", {4: Config(rows, 4)})
    monkeypatch.setattr(_triton_kernels, "STEPS", {4: 32})
    check(WindowCase("tiles", 1, 1, 8, (5, 8), 5), torch.float32, "triton")


def test_calls_beyond_a_launch_are_left_to_another_backend(monkeypatch: Any) -> None:
    monkeypatch.setattr(_triton, "unsupported_reason", lambda tensor: None)

    def reason(images: int, heads: int, window_size: int) -> str | None:
        qkv = torch.empty(images, 1, 3, heads, 1, device="meta")
        return backend.unsupported_reason(_call.Call(qkv, [1, 1], window_size))

    assert reason(65535, 65535, 2**30) is None
    assert "at most 65535 images and heads, got 65536 and 1" in str(reason(65536, 1, 1))
    assert "at most 65535 images and heads, got 1 and 65536" in str(reason(1, 65536, 1))
    assert "windows of at most 1073741824 tokens a side" in str(reason(1, 1, 2**30 + 1))


def launches(dtype: torch.dtype, channels: int) -> dict[str, Any]:
    """Return the kernel and the arguments of every launch of forward and backward, by name."""
    from compile_triton import recorded

    qkv = torch.empty(2, 64 * 64, 3, 768 // channels, channels, dtype=dtype, device="meta")
    call = _call.Call(qkv, [64, 64], 14)
    with recorded() as found:
        out, logsumexp = backend.forward(call)
        backend.backward(call, torch.empty_like(out), (True,), out, logsumexp)
    return found


# As written beside each kernel.
REGISTERS = {"forward_kernel": 200, "query_gradient_kernel": 128, "key_gradient_kernel": 184}
IN_A_PROCESS_OF_ITS_OWN = pytest.mark.skipif(
    IS_INTERPRETED, reason="runs in a process of its own, which can compile"
)


@IN_A_PROCESS_OF_ITS_OWN
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=dtype_id)
@pytest.mark.parametrize("arch", [80, 90])
def test_kernels_compile_without_spills(arch: int, dtype: torch.dtype) -> None:
    from compile_triton import compiled, usage
    from stub_driver import sm

    found = launches(dtype, 64)
    assert set(found) == set(REGISTERS)
    for name, launch in found.items():
        used = usage(compiled(launch, sm(arch)), counts=False)
        assert used["local"] == 0 and used["registers"] <= REGISTERS[name], (name, used)


@IN_A_PROCESS_OF_ITS_OWN
@pytest.mark.parametrize(("dtype", "channels"), [(torch.float64, 16), (torch.float16, 256)])
def test_other_dtypes_and_heads_compile(dtype: torch.dtype, channels: int) -> None:
    from compile_triton import compiled
    from stub_driver import SM_90

    for launch in launches(dtype, channels).values():
        assert compiled(launch, SM_90)


@IN_A_PROCESS_OF_ITS_OWN
def test_compilers_see_the_kernels_and_what_they_write(monkeypatch: pytest.MonkeyPatch) -> None:
    from stub_driver import stub_driver
    from torch._functorch.aot_autograd import aot_export_joint_simple
    from trace_triton import kernels_of

    from vitadapter_fast.ops import window_attention

    monkeypatch.setattr(_triton, "unsupported_reason", lambda tensor: None)
    qkv = make_qkv(AWKWARD_WINDOW[3], dtype=torch.float32).requires_grad_()

    def run(leaf: torch.Tensor) -> tuple[torch.Tensor]:
        return (window_attention(leaf, (11, 13), 7, backend="triton"),)

    with stub_driver():
        graph = aot_export_joint_simple(run, (qkv,), trace_joint=True)
    assert kernels_of(graph) == [
        "forward_kernel: logsumexp, out",
        "query_gradient_kernel: grad_qkv, products",
        "key_gradient_kernel: grad_qkv",
    ]


@pytest.mark.skipif(not IS_INTERPRETED, reason="this process compiles")
def test_kernels_compile_in_a_process_without_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(
        [*command, "-k", "compile_without_spills or heads_compile or compilers_see"],
        env=os.environ | {"TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout
