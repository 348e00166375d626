# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels in Triton's interpreter against the float64 reference, without a GPU."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import AWKWARD, MODEL_HEADS, NO_QUERIES, AttnCase, extractor, injector, make_inputs
from summing import HOW, nan_filled_memory, sum_by
from test_ms_deform_attn import case_id, check, check_not_finite, cotangent_of, dtype_id, results
from test_ms_deform_attn import (
    test_a_point_half_a_pixel_outside_reads_half_and_one_pixel_outside_reads_zero as check_edges,
)
from test_ms_deform_attn import (
    test_gradient_at_a_pixel_center_is_that_of_the_cell_to_the_right as check_pixel_center,
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
from torch import Tensor

import vitadapter_fast
from vitadapter_fast.ops import _triton
from vitadapter_fast.ops._triton import Config
from vitadapter_fast.ops.ms_deform_attn import triton

pytestmark = [
    pytest.mark.skipif(
        (reason := _triton.unsupported_reason(torch.empty(0))) is not None, reason=str(reason)
    ),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

# A program takes the interpreter about 10 ms a point, whatever its width: few programs.
SMALLER: dict[str, dict[str, Any]] = {
    "one_row_level": {"heads": 1, "query_hw": ((5, 1), (1, 7))},
    "prime_sizes": {"heads": 1, "query_hw": ((3, 11),)},
    "wide_head": {"query_hw": ((3, 2),)},
    "one_point": {"heads": 2, "query_hw": ((7, 3),)},
    "five_levels_nine_points": {"heads": 1},
    "four_levels": {"heads": 1, "query_hw": ((4, 3),)},
}
SMALL = [replace(case, **SMALLER.get(case.name, {})) for case in AWKWARD]
MODELS = [
    injector("injector_s", 32, *MODEL_HEADS["s"]),
    extractor("extractor_b", 32, *MODEL_HEADS["b"]),
]
CASES = [*SMALL, *(case.classic() for case in SMALL), NO_QUERIES]

# Every dtype and every sum; their product is for devices.
KINDS = [
    (torch.float32, "atomics"),
    (torch.float32, "records"),
    (torch.float16, "deterministic"),
    (torch.bfloat16, "records"),
    (torch.float64, "atomics"),
]


@pytest.fixture(params=HOW)
def how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    sum_by(request.param, monkeypatch)
    return str(request.param)


@pytest.mark.parametrize(("dtype", "how"), KINDS, ids=[f"{dtype_id(d)}-{how}" for d, how in KINDS])
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_output_and_gradients(
    case: AttnCase, dtype: torch.dtype, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sum_by(how, monkeypatch)
    with nan_filled_memory():
        check(make_inputs(case, dtype=dtype), "triton")


@pytest.mark.parametrize("case", MODELS, ids=case_id)
def test_heads_of_the_models(case: AttnCase, monkeypatch: pytest.MonkeyPatch) -> None:
    sum_by("atomics" if case is MODELS[0] else "records", monkeypatch)
    with nan_filled_memory():
        check(make_inputs(case, dtype=torch.bfloat16), "triton")


@pytest.mark.usefixtures("how")
@pytest.mark.parametrize("wide", ["points", "weights"])
def test_float32_points_or_weights_with_a_16_bit_value(wide: str) -> None:
    inputs = make_inputs(SMALL[3], dtype=torch.bfloat16)
    setattr(inputs, wide, getattr(inputs, wide).float() + 1e-3)
    check(inputs, "triton")


@pytest.mark.usefixtures("how")
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1e30])
def test_points_that_are_not_finite_read_zero(bad: float) -> None:
    for case in (SMALL[3], SMALL[3].classic()):
        check_not_finite("triton", bad, case)


@pytest.mark.parametrize("spread", [0.0, 40.0])
def test_points_on_the_query_and_far_outside(spread: float) -> None:
    check(make_inputs(SMALL[0], spread=spread, dtype=torch.float32), "triton")


def test_edges_and_pixel_centers() -> None:
    check_pixel_center("triton")
    check_edges("triton")


@pytest.mark.usefixtures("how")
def test_gradients_that_nobody_needs_are_not_computed() -> None:
    with nan_filled_memory():
        check_needs("triton", SMALL[1])


@pytest.mark.parametrize("form", ["grid", "classic"])
def test_inputs_of_any_strides_give_the_same(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sum_by("deterministic", monkeypatch)
    case = SMALL[3] if form == "grid" else SMALL[3].classic()
    check_strided("triton", replace(case, batch=2))
    check_transposed("triton", replace(case, batch=2))


def rows_of(tensor: Tensor) -> tuple[bool, int, int]:
    """Return whether the tensor is read in place, its rows an image and its stride of rows."""
    told = _triton.rows("value", tensor)
    return told["value"] is tensor, told["value_rows"], told["VALUE_ROW"]


def test_rows_a_fixed_stride_apart_are_read_in_place() -> None:
    dense = torch.empty(3, 5, 4, 2)
    assert rows_of(dense) == (True, 5, 8)
    assert rows_of(dense[:, :, 1:3]) == (True, 5, 8)  # some heads of all
    assert rows_of(dense[:, 1:4]) == (True, 5, 8)
    assert rows_of(dense[::2]) == (True, 10, 8)
    assert rows_of(dense[:1, :, 1:]) == (True, 0, 8)
    assert rows_of(dense[:, :1]) == (True, 5, 8)
    assert rows_of(dense[:, ::2]) == (False, 3, 8)  # 40 elements an image, 16 a row
    assert rows_of(dense[:, :1].expand(3, 5, 4, 2)) == (False, 5, 8)
    assert rows_of(dense.transpose(2, 3)) == (False, 5, 8)
    assert rows_of(torch.empty(2, 1, 4, 0)) == (True, 4, 1)


def test_deterministic_backward_does_not_depend_on_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter runs programs in order: other tiles stand for another order of threads."""
    from vitadapter_fast.ops.ms_deform_attn import _triton_backward

    case = AttnCase("crowded", 1, 1, 32, 2, ((2, 2),), ((8, 8),))
    inputs = make_inputs(case, dtype=torch.float32)

    def run(rows: int, how: str) -> Tensor:
        monkeypatch.setattr(triton, "_default", lambda table, call: Config(rows, 4))
        sum_by(how, monkeypatch)
        return results(inputs, "triton", cotangent_of(inputs))["value"]

    assert _triton_backward.CONFIGS
    assert torch.equal(run(64, "deterministic"), run(16, "deterministic"))
    assert not torch.equal(run(64, "records"), run(16, "records"))


@pytest.mark.parametrize("rows", [8, 16, 256])
def test_launch_parameters_do_not_change_results(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton, "_default", lambda table, call: Config(rows, 4))
    check(make_inputs(AttnCase("tiles", 1, 1, 8, 1, ((3, 3),), ((9, 5), (1, 3)))), "triton")


def test_tuning_keeps_the_fastest_and_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def time_ms(run: Any, config: Config) -> float:
        tried.append(config)
        if len(tried) < 3:
            run(config)  # leaves counts and sums behind
        return float(abs(config.rows - 32) + config.num_warps)

    monkeypatch.setattr(_triton, "_time_ms", time_ms)
    monkeypatch.setattr(_triton, "_tuned", {})
    sum_by("records", monkeypatch)
    inputs = make_inputs(SMALL[3], dtype=torch.float32)
    check(inputs, "triton")
    assert not tried and not _triton._tuned
    with vitadapter_fast.tuning():
        check(inputs, "triton")
    kernels = {key[0] for key in _triton._tuned}
    assert kernels == {"forward", "backward by records", "place", "gather"}
    assert _triton._tuned[next(iter(_triton._tuned))] == Config(32, 1)
    count = len(tried)
    with vitadapter_fast.tuning():
        check(inputs, "triton")
    assert len(tried) == count


def test_cpu_kernels_come_first_even_where_the_interpreter_runs() -> None:
    from vitadapter_fast.ops.ms_deform_attn import BACKENDS
    from vitadapter_fast.ops.ms_deform_attn._call import classic_call

    points = torch.empty(1, 1, 1, 1, 1, 2)
    call = classic_call(torch.empty(1, 1, 1, 8), [1, 1], points, points[..., 0])
    names = [m.__name__.rpartition(".")[2] for m in BACKENDS if m.unsupported_reason(call) is None]
    assert names[-2:] == ["triton", "reference"]
    assert names in (["cpu", "triton", "reference"], ["triton", "reference"])


def test_batches_beyond_a_launch_are_left_to_another_backend() -> None:
    from vitadapter_fast.ops.ms_deform_attn._call import classic_call

    points = torch.empty(65536, 1, 1, 1, 1, 2)
    call = classic_call(torch.empty(65536, 1, 1, 1), [1, 1], points, points[..., 0])
    assert triton.unsupported_reason(call) == "it takes at most 65535 images, got 65536"
