# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The 3 x 3 convolution in products of 16 bits, against float64 and torch in bfloat16."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from test_half_linear import DTYPES, needs_halves, random, whole
from tolerance import assert_same_for_any_number_of_threads
from torch import Tensor

from vitadapter_fast.native import half_conv

pytestmark = [needs_halves, pytest.mark.usefixtures("nan_filled_memory")]


class Case(NamedTuple):
    """One shape of a call."""

    name: str
    batch: int
    inputs: int
    height: int
    width: int
    outputs: int
    stride: int = 1
    pads_rows: bool = True
    has_bias: bool = True
    has_relu: bool = True


CASES = [
    Case("stem", 1, 64, 12, 40, 64),
    Case("band", 2, 64, 9, 24, 64, pads_rows=False),
    Case("down", 2, 32, 10, 14, 48, stride=2),
    Case("odd_sizes_down", 1, 16, 7, 9, 33, stride=2, has_bias=False, has_relu=False),
    Case("left_over", 3, 48, 5, 11, 17, has_relu=False),
    Case("one_pixel", 1, 16, 1, 1, 1, has_bias=False),
    Case("one_row", 1, 16, 3, 19, 20, pads_rows=False),
    Case("one_column_down", 1, 32, 4, 1, 5, stride=2),
    Case("inputs_in_parts", 1, 224, 3, 9, 16, has_relu=False),
    Case("no_image", 0, 16, 4, 4, 16),
]
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "planes": lambda x: x.contiguous(),
    "rows_of_a_larger_map": lambda x: torch.cat([x, x, x], 2).contiguous(
        memory_format=torch.channels_last
    )[:, :, x.shape[2] : 2 * x.shape[2]],
    "columns_of_a_larger_map": lambda x: torch.cat([x, x], 3).contiguous(
        memory_format=torch.channels_last
    )[..., : x.shape[3]],
    "negative_rows_of_a_larger_map": lambda x: torch._neg_view(LAYOUTS["rows_of_a_larger_map"](-x)),
    "one_image_for_all": lambda x: LAYOUTS["channels_last"](x[:1]).expand(x.shape),
}


def inputs(case: Case, make: Callable[..., Tensor], dtype: torch.dtype) -> dict[str, Any]:
    B, K, H, W, C = case.batch, case.inputs, case.height, case.width, case.outputs
    return {
        "x": make(B, K, H, W, seed=1).to(dtype),
        "weight": make(C, K, 3, 3, seed=2),
        "bias": make(C, seed=3) if case.has_bias else None,
        "stride": case.stride,
        "pads_rows": case.pads_rows,
        "has_relu": case.has_relu,
    }


def truth_of(call: dict[str, Any]) -> Tensor:
    """Return the result in float64."""
    x, weight = call["x"].double(), call["weight"].double()
    bias = None if call["bias"] is None else call["bias"].double()
    if call["pads_rows"]:
        x = F.pad(x, (0, 0, 1, 1))
    result = F.conv2d(x, weight, bias, call["stride"], (0, 1))
    return result.relu() if call["has_relu"] else result


def check(
    case: Case,
    dtype: torch.dtype,
    out_dtype: torch.dtype,
    change: Callable[[Tensor], Tensor] = lambda x: x,
) -> None:
    """Compare the kernel with float64."""
    call = inputs(case, random, dtype)
    call["x"] = change(call["x"])
    got, right = half_conv.conv(**call, dtype=out_dtype), truth_of(call)
    size = truth_of({k: v.abs() if isinstance(v, Tensor) else v for k, v in call.items()})
    assert got.dtype == out_dtype and got.is_contiguous(memory_format=torch.channels_last)
    bound = 2**-9 * size + torch.finfo(out_dtype).eps * right.abs() + 1e-30
    assert ((got.double() - right).abs() <= bound).all()


@pytest.mark.parametrize("out_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_kernel_is_the_definition(case: Case, dtype: torch.dtype, out_dtype: torch.dtype) -> None:
    check(case, dtype, out_dtype)


def test_no_channels_give_none() -> None:
    got = half_conv.conv(random(1, 16, 4, 4), random(0, 16, 3, 3), None, 1, has_relu=True)
    assert got.shape == (1, 0, 4, 4)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES[:-1], ids=lambda case: case.name)
def test_whole_numbers_are_multiplied_exactly(case: Case, dtype: torch.dtype, layout: str) -> None:
    call = inputs(case, whole, dtype)
    call["x"] = LAYOUTS[layout](call["x"])
    assert torch.equal(half_conv.conv(**call).double(), truth_of(call))


def test_it_errs_little_against_torch_in_bfloat16() -> None:
    x, weight = random(1, 64, 20, 30, seed=1).relu(), random(64, 64, 3, 3, seed=2)
    right = F.conv2d(x.double(), weight.double(), None, 1, 1)
    by_torch = F.conv2d(x.bfloat16(), weight.bfloat16(), None, 1, 1).double()
    got = half_conv.conv(x, weight, None, 1, has_relu=False).double()
    assert torch.dist(got, right) <= 0.4 * torch.dist(by_torch, right)  # measured: 0.25


def test_rows_of_any_size_lose_nothing() -> None:
    x, weight = random(1, 32, 6, 9, seed=1), random(20, 32, 3, 3, seed=2)
    wanted = half_conv.conv(x, weight, None, 1, has_relu=False)
    for size in (2.0**-60, 2.0**60):
        got = half_conv.conv(x * size, weight / size, None, 1, has_relu=False)
        assert torch.equal(got, wanted)
    beyond = half_conv.conv(x * 2.0**100, weight, None, 1, has_relu=False)
    assert not beyond.isfinite().any()  # told, where a number this large is no map's


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_not_finite_is_told_in_its_rows_and_channel_alone(
    dtype: torch.dtype, value: float
) -> None:
    x, weight = random(2, 32, 8, 9, seed=1).to(dtype), random(20, 32, 3, 3, seed=2)
    x[1, 3, 4, 5] = value
    weight[7, 0, 1, 1] = value
    got = half_conv.conv(x, weight, random(20), 1, has_relu=True)
    wrong = torch.zeros(2, 20, 8, 9, dtype=torch.bool)
    wrong[1, :, 3:6], wrong[:, 7] = True, True
    assert torch.equal(got.isnan(), wrong)


def test_any_number_of_threads_gives_the_same() -> None:
    call = inputs(CASES[0], random, torch.float32)
    assert_same_for_any_number_of_threads(lambda: {"out": half_conv.conv(**call)})
