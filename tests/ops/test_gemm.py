# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Products on the CPU, whole and in pieces, against float64."""

import pytest
import torch
from tolerance import budget, max_err
from torch import Tensor

from vitadapter_fast.native import gemm


@pytest.fixture(autouse=True)
def by_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where oneDNN's products are the fastest."""
    monkeypatch.setattr(gemm, "_has_onednn", True)


def test_torch_multiplies_where_that_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gemm, "_by_onednn", lambda *args: pytest.fail("oneDNN was called"))
    monkeypatch.setattr(gemm, "_has_onednn", False)
    rows, weight = numbers(33, 13), numbers(7, 13)
    assert torch.equal(gemm.linear(rows, weight), torch.nn.functional.linear(rows, weight))
    assert gemm.weight_gradient(numbers(33, 7), rows).shape == (7, 13)


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def check(got: Tensor, reference: Tensor, truth: Tensor) -> None:
    assert got.shape == truth.shape and got.is_contiguous()
    assert max_err(got, truth) <= budget(reference, truth, torch.float32)


@pytest.mark.usefixtures("nan_filled_memory")
@pytest.mark.parametrize("in_pieces", [False, True])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("has_plus", [True, False])
@pytest.mark.parametrize("num_rows", [1, 10, 11, 20, 33])
@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("overwrites", [True, False])
def test_linear(
    num_rows: int,
    has_plus: bool,
    has_bias: bool,
    in_pieces: bool,
    transposed: bool,
    overwrites: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A piece, of 10 rows, is no more than what is computed whole.
    monkeypatch.setattr(gemm, "_PIECE", 10)
    monkeypatch.setattr(gemm, "_HEAP_BYTES", 10 * 7 * 4 if in_pieces else 2**20)
    calls: list[int] = []
    run = gemm._in_pieces
    monkeypatch.setattr(gemm, "_in_pieces", lambda *args: calls.append(1) or run(*args))
    rows = numbers(13, num_rows).t() if transposed else numbers(num_rows, 13)
    weight = numbers(13, 7).t() if transposed else numbers(7, 13)
    bias = numbers(7) if has_bias else None
    plus = numbers(num_rows, 7) if has_plus else None
    kept = None if plus is None else plus.clone()

    got = gemm.linear(rows, weight, bias, plus=plus, overwrites=overwrites)

    def product(dtype: torch.dtype) -> Tensor:
        out = rows.to(dtype) @ weight.t().to(dtype)
        for more in (bias, kept):
            out = out if more is None else out + more.to(dtype)
        return out

    check(got, product(torch.float32), product(torch.float64))
    assert len(calls) == (in_pieces and num_rows > 10)
    if plus is not None:
        assert torch.equal(plus, got if overwrites and calls else kept)


def test_rows_too_wide_for_pieces_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gemm, "_PIECE", 10)
    monkeypatch.setattr(gemm, "_HEAP_BYTES", 9 * 7 * 4)
    monkeypatch.setattr(gemm, "_in_pieces", None)
    rows, weight = numbers(33, 13), numbers(7, 13)
    check(gemm.linear(rows, weight), rows @ weight.t(), rows.double() @ weight.double().t())


@pytest.mark.parametrize("shape", [(1, 1, 1), (50, 8, 3), (50, 3, 8), (21, 5, 5)])
def test_weight_gradient(shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gemm, "_PIECE", 20)
    num_rows, channels, inputs = shape
    grad, rows = numbers(num_rows, channels), numbers(num_rows, inputs)
    got = gemm.weight_gradient(grad, rows)
    check(got, grad.t() @ rows, grad.double().t() @ rows.double())
