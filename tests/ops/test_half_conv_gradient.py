# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The gradient of a 3 x 3 convolution's weights in products of 16 bits, against float64."""

from collections.abc import Callable

import pytest
import torch
from test_half_conv import LAYOUTS, Case
from test_half_linear import DTYPES, needs_halves, random, whole
from tolerance import assert_same_for_any_number_of_threads
from torch import Tensor

from vitadapter_fast.native import half_conv

pytestmark = [needs_halves, pytest.mark.usefixtures("nan_filled_memory")]


CASES = [
    Case("stem", 1, 64, 12, 40, 64),
    Case("down", 2, 32, 10, 14, 48, stride=2),
    Case("odd_sizes", 2, 16, 7, 9, 33),
    Case("odd_sizes_down", 1, 16, 7, 9, 33, stride=2),
    Case("image", 1, 3, 11, 22, 20, stride=2),
    Case("left_over", 3, 50, 5, 11, 77),
    Case("one_of_each", 1, 1, 1, 1, 1),
    Case("one_of_each_down", 1, 1, 2, 2, 1, stride=2),
    Case("one_column_down", 1, 32, 4, 1, 5, stride=2),
    Case("many_images", 70, 16, 3, 4, 8),
    Case("bands_of_one_row", 1, 360, 3, 520, 3),
    Case("few_parts", 5, 160, 2, 2, 600),
    Case("no_image", 0, 16, 4, 4, 16),
]


def maps(case: Case, make: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
    """Return the gradient of the result, and the map."""
    B, K, H, W, C, stride = case[1:7]
    sizes = (H - 1) // stride + 1, (W - 1) // stride + 1
    return make(B, C, *sizes, seed=1), make(B, K, H, W, seed=2)


def truth_of(grad: Tensor, x: Tensor, stride: int) -> Tensor:
    weight = torch.empty(grad.shape[1], x.shape[1], 3, 3, dtype=x.dtype)
    found = torch.ops.aten.convolution_backward(
        grad, x, weight, None, [stride] * 2, [1, 1], [1, 1], False, [0, 0], 1, [False, True, False]
    )
    return torch.as_tensor(found[1])


def check(
    case: Case,
    dtype: torch.dtype,
    grad_dtype: torch.dtype,
    change: Callable[[Tensor], Tensor] = lambda x: x,
) -> None:
    """Compare the kernel with float64."""
    grad, x = maps(case, random)
    grad, x = change(grad.to(grad_dtype)), change(x.to(dtype))
    got = half_conv.weight_gradient(grad, x, case.stride, dtype=dtype)
    right = truth_of(grad.double(), x.double(), case.stride)
    size = truth_of(grad.double().abs(), x.double().abs(), case.stride)
    assert got.dtype == dtype and got.shape == right.shape
    bound = 2**-9 * size + torch.finfo(dtype).eps * right.abs() + 1e-30
    assert ((got.double() - right).abs() <= bound).all()


@pytest.mark.parametrize("grad_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_kernel_is_the_definition(case: Case, dtype: torch.dtype, grad_dtype: torch.dtype) -> None:
    check(case, dtype, grad_dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES[:-1], ids=lambda case: case.name)
def test_whole_numbers_are_multiplied_exactly(case: Case, dtype: torch.dtype, layout: str) -> None:
    grad, x = (LAYOUTS[layout](each.to(dtype)) for each in maps(case, whole))
    got = half_conv.weight_gradient(grad, x, case.stride, dtype=torch.float32)
    assert torch.equal(got.double(), truth_of(grad.double(), x.double(), case.stride))


def test_it_errs_little_against_torch_in_bfloat16() -> None:
    grad, x = maps(CASES[0], random)
    x = x.relu()
    right = truth_of(grad.double(), x.double(), 1)
    by_torch = truth_of(grad.bfloat16(), x.bfloat16(), 1).double()
    got = half_conv.weight_gradient(grad, x, 1, dtype=torch.float32).double()
    assert torch.dist(got, right) <= 0.4 * torch.dist(by_torch, right)


def test_channels_of_any_size_lose_nothing() -> None:
    grad, x = maps(CASES[0], random)
    wanted = half_conv.weight_gradient(grad, x, 1, dtype=torch.float32)
    sizes = 2.0 ** torch.arange(-32, 32)[:, None, None]
    got = half_conv.weight_gradient(grad * sizes, x / sizes, 1, dtype=torch.float32)
    assert torch.equal(got, wanted * sizes[..., None] / sizes)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES[:2], ids=lambda case: case.name)
def test_what_is_not_finite_is_told_in_its_channel_alone(
    case: Case, dtype: torch.dtype, value: float
) -> None:
    grad, x = (each.to(dtype) for each in maps(case, random))
    grad[0, 7, 1, 2], x[0, 3, 4, 5] = value, value
    got = half_conv.weight_gradient(grad, x, case.stride, dtype=torch.float32)
    allowed = torch.zeros(got.shape, dtype=torch.bool)
    allowed[7], allowed[:, 3] = True, True
    wrong = ~truth_of(grad.double(), x.double(), case.stride).isfinite()
    assert wrong.any() and got.isnan()[wrong].all() and got[~allowed].isfinite().all()


@pytest.mark.parametrize("case", [CASES[0], CASES[1], CASES[9]], ids=lambda case: case.name)
def test_any_number_of_threads_gives_the_same(case: Case) -> None:
    grad, x = maps(case, random)
    assert_same_for_any_number_of_threads(
        lambda: {"out": half_conv.weight_gradient(grad, x, case.stride, dtype=torch.float32)}
    )
