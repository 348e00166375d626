# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels, executed on the CPU from the same source, against the float64 reference."""

import os

import pytest
import torch
from cases import AWKWARD, NO_QUERIES, REAL, AttnCase, make_inputs
from cuda_on_cpu import route
from examples import FACTOR
from sanitized import run_sanitized
from summing import HOW
from test_layouts import ALL, names_of_backends
from test_layouts import check as check_layout
from test_ms_deform_attn import (
    DTYPES,
    case_id,
    check,
    check_not_finite,
    cotangent_of,
    dtype_id,
    results,
)
from test_ms_deform_attn import (
    test_gradients_that_nobody_needs_are_not_computed as check_needs,
)
from test_ms_deform_attn import (
    test_strided_inputs_are_read_where_they_lie as check_strided,
)
from test_ms_deform_attn import (
    test_transposed_inputs_and_cotangent_give_the_same as check_transposed,
)

from vitadapter_fast.ops.ms_deform_attn import _call, _value_gradient

FORMS = ["grid", "classic"]

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def in_form(case: AttnCase, form: str) -> AttnCase:
    return case if form == "grid" else case.classic()


@pytest.fixture(params=[*HOW, "atomics of one float"])
def how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    way = str(request.param).removesuffix(" of one float")
    route(monkeypatch, way, has_float4_atomics=way == request.param)
    return way


@pytest.mark.usefixtures("nan_filled_memory")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_id)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", REAL, ids=case_id)
def test_real_shapes(
    case: AttnCase, form: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What the rule chooses at the real image sizes; the other sums are tested on small shapes.
    route(monkeypatch, "atomics" if case.name.startswith("injector") else "records")
    check(make_inputs(in_form(case, form), dtype=dtype), "cuda")


@pytest.mark.usefixtures("how")
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", [*AWKWARD, NO_QUERIES], ids=lambda case: case.name)
def test_awkward_shapes(case: AttnCase, form: str, dtype: torch.dtype) -> None:
    check(make_inputs(in_form(case, form), dtype=dtype), "cuda")


@pytest.mark.usefixtures("how")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("levels", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("channels", [16, 32, 64, 128])
def test_every_specialized_kernel(channels: int, levels: int, form: str) -> None:
    sizes = ((5, 3), (1, 4), (2, 1), (1, 1), (3, 2))[:levels]
    case = AttnCase("specialized", 2, 2, channels, 4, sizes, ((3, 5), (1, 2)))
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        check(make_inputs(in_form(case, form), dtype=dtype), "cuda")


@pytest.mark.usefixtures("how")
@pytest.mark.parametrize("wide", ["points", "weights"])
def test_generic_kernels_take_mixed_dtypes_at_specialized_sizes(wide: str) -> None:
    inputs = make_inputs(AWKWARD[2], dtype=torch.bfloat16)
    setattr(inputs, wide, getattr(inputs, wide).float() + 1e-3)
    check(inputs, "cuda")


@pytest.mark.usefixtures("how")
@pytest.mark.parametrize("form", FORMS)
def test_a_value_that_is_not_aligned_runs_in_the_generic_kernels(form: str) -> None:
    inputs = make_inputs(in_form(AWKWARD[2], form), dtype=torch.float32)
    shifted = torch.empty(inputs.value.numel() + 1)[1:].view_as(inputs.value)
    inputs.value = shifted.copy_(inputs.value)
    assert inputs.value.data_ptr() % 16
    check(inputs, "cuda")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1e30])
@pytest.mark.parametrize("form", FORMS)
def test_points_that_are_not_finite_read_zero(how: str, bad: float, form: str) -> None:
    for case in (AWKWARD[2], AWKWARD[0]):  # a specialized and a generic kernel
        check_not_finite("cuda", bad, in_form(case, form))


def test_strides_and_unneeded_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    route(monkeypatch, "deterministic")  # these compare bit by bit
    check_strided("cuda", REAL[0])
    check_transposed("cuda", REAL[1])
    check_needs("cuda", AWKWARD[2])


@pytest.mark.parametrize("name", [name for name in ALL if "cuda" in names_of_backends(name)])
def test_layouts_that_compilers_are_told(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    route(monkeypatch)
    for dtype in (torch.float32, torch.bfloat16):
        check_layout(name, "cuda", dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=dtype_id)
def test_deterministic_backward_is_bit_equal_whatever_the_order_of_threads(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Many points to a cell, so that ranks differ between runs: blocks and threads run shuffled.
    case = AttnCase("crowded", 1, 2, 32, 4, ((2, 2),), ((12, 12),))
    inputs = make_inputs(case, dtype=dtype)
    route(monkeypatch, "deterministic")
    runs = [results(inputs, "cuda", cotangent_of(inputs))["value"] for _ in range(4)]
    assert all(torch.equal(run, runs[0]) for run in runs)


def test_order_of_threads_shows_where_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """Atomics add in another order each time: without this the test above could not fail."""
    case = AttnCase("crowded", 1, 2, 32, 4, ((2, 2),), ((12, 12),))
    inputs = make_inputs(case, dtype=torch.float32)
    for how in ("atomics", "records"):
        route(monkeypatch, how)
        runs = [results(inputs, "cuda", cotangent_of(inputs))["value"] for _ in range(4)]
        assert not all(torch.equal(run, runs[0]) for run in runs), how


def test_rule_gathers_where_a_pixel_receives_many_points(monkeypatch: pytest.MonkeyPatch) -> None:
    route(monkeypatch)
    chosen = []
    for name in ("_by_atomics", "_by_records"):
        run = getattr(_value_gradient, name)
        monkeypatch.setattr(
            _value_gradient,
            name,
            lambda *args, run=run, name=name: chosen.append(name) or run(*args),
        )
    for case in (REAL[3], REAL[7]):  # injector, extractor of g
        inputs = make_inputs(case, dtype=torch.float32)
        results(inputs, "cuda", cotangent_of(inputs))
    assert chosen == ["_by_atomics", "_by_records"]


def test_calls_beyond_32_bit_indices_are_left_to_another_backend() -> None:
    from vitadapter_fast.ops.ms_deform_attn._call import classic_call

    def reason(batch: int, heads: int) -> str | None:
        value = torch.empty(batch, 4, heads, 8, device="meta")
        points = torch.empty(batch, 2**20, heads, 1, 4, 2, device="meta")
        return _call.size_reason(classic_call(value, [2, 2], points, points[..., 0]))

    assert reason(16, 16) is None
    assert "2147483647 points" in str(reason(32, 16))
    many = [1, 1] * 17
    value = torch.empty(1, 17, 1, 8, device="meta")
    points = torch.empty(1, 1, 1, 17, 1, 2, device="meta")
    call = classic_call(value, many, points, points[..., 0])
    assert "at most 16 levels" in str(_call.size_reason(call))


@pytest.mark.skipif("VITADAPTER_TEST_CUDA_FLAGS" in os.environ, reason="already sanitized")
def test_kernels_are_clean_under_address_and_undefined_behavior_sanitizers() -> None:
    dtypes = "not float16 and not float64" + ("" if FACTOR > 1 else " and not bfloat16")
    chosen = f"(test_awkward_shapes and {dtypes}) or not_finite or not_aligned"
    chosen += " or (test_every_specialized_kernel and 32-)"
    others = [f"test_{op}_cuda_on_cpu" for op in ("patch_embed", "dwconv_gelu", "rope")]
    chosen += f" or (({' or '.join(others)}) and {dtypes})"
    run_sanitized(["test_cuda_on_cpu", *others], chosen)
