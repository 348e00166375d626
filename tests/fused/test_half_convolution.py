# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Convolutions in products of 16 bits with their gradients, against float64 and torch."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vitadapter_fast import ViTAdapter
from vitadapter_fast.fused import half_convolution, pyramid
from vitadapter_fast.native import half_linear

pytestmark = pytest.mark.skipif(
    not half_linear.has_products(), reason="this processor has no AVX512_FP16"
)
LOW = torch.bfloat16
# Inputs, outputs, stride; outputs that do not divide by 16 have no kernel for the map's gradient.
SHAPES = [(16, 32, 1), (32, 16, 2), (16, 20, 1)]


def gradients(run: Any, *inputs: Tensor | None) -> list[Tensor | None]:
    """Return the result of ``run`` and the gradients of ``inputs``."""
    leaves = [None if each is None else each.detach().requires_grad_() for each in inputs]
    out = run(*leaves)
    generator = torch.Generator().manual_seed(9)
    cotangent = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype)
    wanted = [each for each in leaves if each is not None]
    return [out.detach(), *torch.autograd.grad(out, wanted, cotangent)]


def compare(
    mine: Any, plain: Any, inputs: list[Tensor | None], out_dtype: torch.dtype = LOW
) -> None:
    """Refuse more error than torch makes in bfloat16, and other dtypes than the inputs'."""
    exact = [None if each is None else each.double() for each in inputs]
    low = [None if each is None else each.to(LOW) for each in inputs]
    found = gradients(mine, *inputs), gradients(plain, *low), gradients(plain, *exact)
    wanted = [out_dtype, *(each.dtype for each in inputs if each is not None)]
    for got, by_torch, right, dtype in zip(*found, wanted, strict=True):
        assert got is not None and by_torch is not None and right is not None
        assert got.dtype == dtype and got.shape == right.shape
        assert torch.dist(got.double(), right) <= 1.2 * torch.dist(by_torch.double(), right)


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("dtypes", [(torch.float32, LOW), (LOW, LOW), (LOW, torch.float32)])
@pytest.mark.parametrize(("K", "C", "stride"), SHAPES)
def test_three_by_three(
    K: int, C: int, stride: int, dtypes: tuple[torch.dtype, torch.dtype], has_bias: bool
) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, K, 12, 10).contiguous(memory_format=torch.channels_last).to(dtypes[0])
    weight = (torch.randn(C, K, 3, 3) / 12).to(dtypes[1])
    bias = torch.randn(C).to(dtypes[1]) if has_bias else None
    compare(
        lambda x, weight, bias: half_convolution.convolve(x, weight, bias, stride, LOW),
        lambda x, weight, bias: F.conv2d(x, weight, bias, stride, 1),
        [x, weight, bias],
    )


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("dtypes", [(torch.float32, LOW), (LOW, LOW), (LOW, torch.float32)])
def test_one_pixel(dtypes: tuple[torch.dtype, torch.dtype], has_bias: bool) -> None:
    torch.manual_seed(0)
    rows, weight = torch.randn(70, 40).to(dtypes[0]), torch.randn(24, 40).to(dtypes[1])
    bias = torch.randn(24).to(dtypes[1]) if has_bias else None
    compare(lambda *inputs: half_convolution.multiply(*inputs, LOW), F.linear, [rows, weight, bias])


def sum_of_largest(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the transposed convolution added to a map of zeros."""
    B, _, h, w = x.shape
    at_4 = torch.zeros(B, weight.shape[1], 2 * h, 2 * w).to(memory_format=torch.channels_last)
    result: Tensor = pyramid._LargestSum.apply(at_4, x, weight, bias, None, True)  # type: ignore[no-untyped-call]
    return result


@pytest.mark.parametrize("dtypes", [(torch.float32, LOW), (LOW, LOW), (LOW, torch.float32)])
def test_two_by_two_transposed(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 32, 6, 10).contiguous(memory_format=torch.channels_last).to(dtypes[0])
    weight, bias = (torch.randn(32, 20, 2, 2) / 6).to(dtypes[1]), torch.randn(20).to(dtypes[1])
    plain = partial(F.conv_transpose2d, stride=2)
    compare(sum_of_largest, plain, [x, weight, bias], torch.float32)


@pytest.mark.parametrize("kernel", [3, 2])
@pytest.mark.parametrize("frozen", ["x", "weight", "bias", "x weight", "weight bias"])
def test_what_is_frozen_gets_no_gradient(frozen: str, kernel: int) -> None:
    inputs = {
        "x": torch.randn(1, 16, 6, 6).contiguous(memory_format=torch.channels_last),
        "weight": torch.randn(16, 16, kernel, kernel),
        "bias": torch.randn(16),
    }
    for name, each in inputs.items():
        each.requires_grad_(name not in frozen.split())
    if kernel == 3:
        out = half_convolution.convolve(*inputs.values(), 1, LOW)
    else:
        out = sum_of_largest(**inputs)
    out.sum().backward()
    for name, each in inputs.items():
        assert (each.grad is None) == (name in frozen.split())


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["fc1", "fc3"])
def test_a_layer_of_another_dtype_is_called(
    name: str, training: bool, tiny: Callable[..., ViTAdapter]
) -> None:
    model, image = tiny(drop_path_rate=0.0, conv_inplane=16).eval(), torch.randn(1, 3, 64, 96)
    called: list[str] = []
    getattr(model.spm, name).to(LOW)
    with torch.set_grad_enabled(training), torch.autocast("cpu", LOW):
        mine = model(image)
        getattr(model.spm, name).register_forward_hook(lambda *_: called.append(name))
        hooked = model(image)
    assert called == [name]
    for got, wanted in zip(mine, hooked, strict=True):
        assert torch.equal(got, wanted)


def test_second_derivatives_are_refused() -> None:
    x, weight = torch.randn(1, 16, 6, 6, requires_grad=True), torch.randn(16, 16, 3, 3)
    out = half_convolution.convolve(x, weight, None, 1, LOW)
    (grad,) = torch.autograd.grad(out.float().square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
