# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The linear layer in products of 16 bits, against float64 and against torch in bfloat16."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from tolerance import assert_same_for_any_number_of_threads
from torch import Tensor

from vitadapter_fast.native import half_linear

HAS_PRODUCTS = half_linear.has_products()
needs_halves = pytest.mark.skipif(not HAS_PRODUCTS, reason="this processor has no AVX512_FP16")
pytestmark = [needs_halves, pytest.mark.usefixtures("nan_filled_memory")]
DTYPES = [torch.float32, torch.bfloat16]


class Case(NamedTuple):
    """One shape of a call."""

    name: str
    rows: int
    inputs: int
    outputs: int
    has_gamma: bool = True
    has_bias: bool = True
    has_plus: bool = True


CASES = [
    Case("block", 64, 384, 1152, has_gamma=False, has_plus=False),
    Case("rows_and_channels_left_over", 14, 50, 33),
    Case("one_row", 1, 384, 48, has_bias=False),
    Case("one_of_each", 1, 1, 1),
    Case("one_input_more_than_is_summed_at_once", 27, 65, 17, has_gamma=False),
    Case("a_half_block_of_rows", 9, 16, 96, has_plus=False),
    Case("many_strips", 40, 36, 1000),
    Case("many_rows", 700, 12, 49, has_gamma=False),
    Case("no_rows", 0, 20, 20),
]
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "dense": lambda tensor: tensor,
    "columns": lambda tensor: tensor.t().contiguous().t(),
    "slice": lambda tensor: torch.cat([tensor, tensor], 1)[:, : tensor.shape[1]],
    "every_second": lambda tensor: torch.stack([tensor, tensor], -1)[..., 0],
    "one_row_for_all": lambda tensor: tensor[:1].expand_as(tensor),
}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def whole(*shape: int, seed: int) -> Tensor:
    """Return whole numbers so small that no sum of their products is rounded."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-3, 4, shape, generator=generator).float()


def inputs(case: Case, make: Callable[..., Tensor], dtype: torch.dtype) -> dict[str, Any]:
    N, K, C = case.rows, case.inputs, case.outputs
    return {
        "rows": make(N, K, seed=1).to(dtype),
        "weight": make(C, K, seed=2).to(dtype),
        "bias": make(C, seed=3) if case.has_bias else None,
        "gamma": make(C, seed=4) if case.has_gamma else None,
        "plus": make(N, C, seed=5).to(dtype) if case.has_plus else None,
    }


def truth_of(call: dict[str, Any], has_gelu: bool = False) -> Tensor:
    """Return the result in float64."""
    rows, weight, bias, gamma, plus = (
        None if part is None else part.double() for part in call.values()
    )
    result = F.linear(F.gelu(rows) if has_gelu else rows, weight, bias)
    result = result if gamma is None else gamma * result
    return result if plus is None else plus + result


def bound_of(call: dict[str, Any], dtype: torch.dtype, has_gelu: bool = False) -> Tensor:
    """Return what each number may be off: a rounding of the products to bfloat16, and its own."""
    right = truth_of(call, has_gelu)
    magnitudes = {key: None if part is None else part.double().abs() for key, part in call.items()}
    size = truth_of(magnitudes, has_gelu=False)
    return 2**-9 * size + torch.finfo(dtype).eps * right.abs() + 1e-30


def check(
    case: Case,
    dtype: torch.dtype,
    out_dtype: torch.dtype,
    has_gelu: bool,
    change: Callable[[Tensor], Tensor] = lambda tensor: tensor,
) -> None:
    """Compare the kernel with float64."""
    call = inputs(case, random, dtype)
    for name in ("rows", "weight"):
        call[name] = change(call[name])
    got = half_linear.linear(**call, has_gelu=has_gelu, dtype=out_dtype)
    right = truth_of(call, has_gelu)
    assert got.dtype == out_dtype and got.is_contiguous()
    assert ((got.double() - right).abs() <= bound_of(call, out_dtype, has_gelu)).all()


@pytest.mark.parametrize("has_gelu", [False, True], ids=["as_it_is", "gelu"])
@pytest.mark.parametrize("out_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_kernel_is_the_definition(
    case: Case, dtype: torch.dtype, out_dtype: torch.dtype, has_gelu: bool
) -> None:
    check(case, dtype, out_dtype, has_gelu)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_whole_numbers_are_multiplied_exactly(case: Case, dtype: torch.dtype, layout: str) -> None:
    call = inputs(case, whole, dtype)
    for name in ("rows", "weight"):
        call[name] = LAYOUTS[layout](call[name])
    got = half_linear.linear(**call, dtype=torch.float32)
    assert torch.equal(got.double(), truth_of(call))


# At most so much of the error of torch's product of bfloat16: measured 0.69, 0.38 and 1.19; where
# all is of one sign, so that sums of float16 are longest, 1.02, 0.25 and 1.06.
SHARES = [
    (torch.float32, torch.bfloat16, 0.8),
    (torch.float32, torch.float32, 0.4),
    (torch.bfloat16, torch.bfloat16, 1.2),
]


@pytest.mark.parametrize(("dtype", "out_dtype", "share"), SHARES)
@pytest.mark.parametrize("has_one_sign", [False, True])
@pytest.mark.parametrize("K", [32, 384, 1536, 4096])
def test_it_errs_little_against_torch_in_bfloat16(
    K: int, has_one_sign: bool, dtype: torch.dtype, out_dtype: torch.dtype, share: float
) -> None:
    rows, weight = random(128, K, seed=1).to(dtype), random(96, K, seed=2).to(dtype)
    if has_one_sign:
        rows, weight = rows.abs(), weight.abs()
    right = rows.double() @ weight.double().t()
    by_torch = F.linear(rows.bfloat16(), weight.bfloat16()).double()
    got = half_linear.linear(rows, weight, dtype=out_dtype).double()
    assert torch.dist(got, right) <= (1.1 if has_one_sign else share) * torch.dist(by_torch, right)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "columns"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_norm_before_the_product(case: Case, dtype: torch.dtype, layout: str) -> None:
    N, K, C = case.rows, case.inputs, case.outputs
    rows = LAYOUTS[layout]((3 + 2 * random(N, K, seed=1)).to(dtype))
    scale, shift, weight, bias = random(K, seed=2), random(K, seed=3), random(C, K, seed=4), None
    if case.has_bias:
        bias = random(C, seed=5)
    got, mean, rstd = half_linear.norm_linear(
        rows, scale, shift, 1e-6, weight.to(dtype), bias, dtype=torch.float32
    )
    wide = [each.double() for each in (rows, scale, shift)]
    normalized, *moments = torch.native_layer_norm(wide[0], [K], wide[1], wide[2], 1e-6)
    call = {"rows": normalized, "weight": weight.to(dtype), "bias": bias, "gamma": None}
    bound = bound_of({**call, "plus": None}, torch.float32)
    right = truth_of({**call, "plus": None})
    # In float32 a normalized number is off by an epsilon of the largest times 1 / deviation.
    bound = bound + 2**-20 * (moments[1] * wide[0].abs().amax(1, keepdim=True)) * (
        wide[1].abs().max() * weight.double().abs().sum(1)
    )
    assert ((got.double() - right).abs() <= bound).all()
    torch.testing.assert_close(mean, moments[0].float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(rstd, moments[1].float(), rtol=2e-4, atol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES[:-1], ids=lambda case: case.name)
def test_gradients_of_weight_and_bias(case: Case, dtype: torch.dtype, layout: str) -> None:
    grad = LAYOUTS[layout](whole(case.rows, case.outputs, seed=1).to(dtype))
    rows = LAYOUTS[layout](whole(case.rows, case.inputs, seed=2).to(dtype))
    product, sums = half_linear.weight_gradient(grad, rows, dtype=torch.float32)
    assert torch.equal(product, grad.float().t() @ rows.float())
    assert torch.equal(sums, grad.float().sum(0))


@pytest.mark.parametrize("layout", ["dense", "columns"])
def test_rows_and_channels_of_any_size_lose_nothing(layout: str) -> None:
    change = LAYOUTS[layout]
    rows, weight = random(20, 70, seed=1), random(40, 70, seed=2)
    wanted = half_linear.linear(change(rows), change(weight), dtype=torch.float32)
    sizes = 2.0 ** torch.randint(-60, 60, (20, 1), generator=torch.Generator().manual_seed(0))
    got = half_linear.linear(change(rows * sizes), change(weight * 2.0**-30), dtype=torch.float32)
    assert torch.equal(got, wanted * sizes * 2.0**-30)
    # The largest that a row may have, and an outlier beside small numbers.
    rows = torch.full((3, 64), 1.9999)
    rows[1], rows[2, 1:] = 3e37, 1e-3
    ones = torch.full((5, 64), 1.9999)
    ones[:, 1:] /= 64
    right = rows.double() @ ones.double().t()
    got = half_linear.linear(change(rows), change(ones), dtype=torch.float32)
    torch.testing.assert_close(got.double(), right, rtol=4e-3, atol=0)
    zero = half_linear.linear(change(rows * 0), change(ones), dtype=torch.float32)
    assert torch.equal(zero, torch.zeros(3, 5))


@pytest.mark.parametrize("octaves", [-50, 0, 50])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_columns_give_what_rows_do_wherever_their_largest_number_lies(
    dtype: torch.dtype, octaves: int
) -> None:
    sizes = 2.0 ** torch.linspace(0, octaves, 200)
    rows, weight = (random(n, 200, seed=n).mul(sizes).to(dtype) for n in (40, 100))
    wanted = half_linear.linear(rows, weight, dtype=torch.float32)
    columns = LAYOUTS["columns"]
    got = half_linear.linear(columns(rows), columns(weight), dtype=torch.float32)
    # What was first rounded for a smaller one is rounded again where float16 has fewer bits.
    again = 0 if octaves <= 0 else 2**-20
    assert (
        (got - wanted).abs() <= again * F.linear(rows.abs().float(), weight.abs().float())
    ).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["dense", "columns"])
def test_what_is_not_finite_is_told_in_its_row_and_channel_alone(
    layout: str, dtype: torch.dtype, value: float
) -> None:
    rows, weight = random(20, 70, seed=1).to(dtype), random(40, 70, seed=2).to(dtype)
    rows[17, 69] = value
    weight[3, 0] = value
    got = half_linear.linear(LAYOUTS[layout](rows), LAYOUTS[layout](weight), dtype=torch.float32)
    wrong = torch.zeros(20, 40, dtype=torch.bool)
    wrong[17], wrong[:, 3] = True, True
    assert torch.equal(got.isnan(), wrong)


def test_gelu_of_minus_infinity_is_zero() -> None:
    rows = torch.full((1, 20), -float("inf"))
    rows[0, 3] = 2.0
    got = half_linear.linear(rows, torch.ones(4, 20), has_gelu=True, dtype=torch.float32)
    torch.testing.assert_close(got, F.gelu(torch.full((1, 4), 2.0)), rtol=1e-3, atol=0)


def test_any_number_of_threads_gives_the_same() -> None:
    call = inputs(CASES[1], random, torch.float32) | {"rows": random(300, 50)}
    call["plus"] = None
    assert_same_for_any_number_of_threads(
        lambda: {"out": half_linear.linear(**call, dtype=torch.bfloat16)}
    )
