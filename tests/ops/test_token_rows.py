# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Rows of tokens, normalized and transposed by our kernels; the memory that threads keep."""

import threading

import pytest
import torch
from tolerance import assert_same_for_any_number_of_threads, budget, max_err
from torch import Tensor

from vitadapter_fast.native import token_rows

SHAPES = [(1, 1, 1), (2, 7, 5), (1, 33, 72), (3, 65, 8), (2, 64, 384), (1, 130, 771)]


def inputs(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(shape, generator=generator) + 2
    weight, bias = torch.randn(2, shape[-1], generator=generator)
    return x, weight, bias


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    return torch.native_layer_norm(x, x.shape[-1:], weight, bias, 1e-6)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_normalized_rows_are_those_of_layer_norm(shape: tuple[int, ...]) -> None:
    x, weight, bias = inputs(shape)
    truth = layer_norm(x.double(), weight.double(), bias.double())
    of_torch = layer_norm(x, weight, bias)
    got = token_rows.normalize(x, weight, bias, 1e-6)
    for result, theirs, wanted in zip(got, of_torch, truth, strict=True):
        assert result.shape == theirs.shape
        assert max_err(result, wanted) <= budget(theirs, wanted, torch.float32)


def gradients(dtype: torch.dtype, grad: Tensor, *of: Tensor) -> list[Tensor]:
    leaves = [tensor.to(dtype).requires_grad_() for tensor in of]
    return list(torch.autograd.grad(layer_norm(*leaves)[0], leaves, grad.to(dtype)))


@pytest.mark.parametrize("has_plus", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_are_those_of_layer_norm(shape: tuple[int, ...], has_plus: bool) -> None:
    x, weight, bias = inputs(shape)
    grad, plus = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
    plus = plus.transpose(0, 1).contiguous().transpose(0, 1)
    truth = gradients(torch.float64, grad, x, weight, bias)
    of_torch = gradients(torch.float32, grad, x, weight, bias)
    if has_plus:
        truth[0], of_torch[0] = truth[0] + plus, of_torch[0] + plus
    normalized, _, rstd = layer_norm(x, weight, bias)
    # What rounding leaves where grad and its mean cancel.
    rounding = 2**-22 * ((grad * weight).abs().max() * rstd.max()).item()
    out, *of_norm = token_rows.normalize_backward(
        grad, x, weight, bias, 1e-6, plus if has_plus else None
    )
    torch.testing.assert_close(out, normalized)
    for got, theirs, wanted in zip((grad, *of_norm), of_torch, truth, strict=True):
        assert max_err(got, wanted) <= budget(theirs, wanted, torch.float32) + rounding


def test_strided_tokens_are_normalized_as_dense_ones() -> None:
    x, weight, bias = inputs((2, 9, 16))
    dense = token_rows.normalize(x, weight, bias, 1e-6)[0].clone()
    strided = x.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(token_rows.normalize(strided, weight, bias, 1e-6)[0], dense)


def test_large_mean_does_not_cancel() -> None:
    x, weight, bias = inputs((1, 40, 384))
    x = x + 1e4
    truth = layer_norm(x.double(), weight.double(), bias.double())[0]
    of_torch = layer_norm(x, weight, bias)[0]
    assert max_err(token_rows.normalize(x, weight, bias, 1e-6)[0], truth) <= budget(
        of_torch, truth, torch.float32
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_transpose_moves_every_element(shape: tuple[int, ...]) -> None:
    rows = inputs(shape)[0].flatten(0, 1)
    assert torch.equal(token_rows.transpose(rows), rows.t())


@pytest.mark.parametrize("columns", [1, 8, 61])
def test_transpose_reads_columns_of_wider_rows(columns: int) -> None:
    rows = torch.randn(70, 100)[3:, 5 : 5 + columns]
    assert torch.equal(token_rows.transpose(rows), rows.t())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_transpose_fills_the_memory_it_is_given(dtype: torch.dtype) -> None:
    rows, out = torch.randn(67, 21), torch.full((21, 67), float("nan"), dtype=dtype)
    assert token_rows.transpose(rows, out).data_ptr() == out.data_ptr()
    assert torch.equal(out, rows.t().to(dtype))


def test_results_are_bit_equal_for_any_number_of_threads() -> None:
    x, weight, bias = inputs((1, 530, 200))

    def run() -> dict[str, Tensor]:
        out, mean, rstd = token_rows.normalize(x, weight, bias, 1e-6)
        results = {"out": out.clone(), "mean": mean, "rstd": rstd, "grad": x.clone()}
        backward = token_rows.normalize_backward(results["grad"], x, weight, bias, 1e-6, x)
        results |= zip(("normalized", "weight", "bias"), backward, strict=True)
        return results | {"columns": token_rows.transpose(x[0]).clone()}

    assert_same_for_any_number_of_threads(run)


def test_a_thread_keeps_its_own_memory() -> None:
    rows = torch.randn(8, 8)
    first = token_rows.transpose(rows)
    assert token_rows.transpose(rows).data_ptr() == first.data_ptr()
    elsewhere: list[Tensor] = []
    thread = threading.Thread(target=lambda: elsewhere.append(token_rows.transpose(rows)))
    thread.start()
    thread.join()
    assert elsewhere[0].data_ptr() != first.data_ptr()


def test_memory_above_the_limit_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_rows, "_KEPT_BYTES", 4 * 100)
    monkeypatch.setattr(token_rows, "_buffers", threading.local())
    token_rows.transpose(torch.randn(10, 11))
    assert not vars(token_rows._buffers)
    token_rows.transpose(torch.randn(10, 10))
    assert vars(token_rows._buffers)


def test_memory_first_used_in_inference_mode_serves_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(token_rows, "_buffers", threading.local())
    with torch.inference_mode():
        token_rows.transpose(torch.randn(4, 4))
    assert not token_rows.transpose(torch.randn(4, 4)).is_inference()


def test_what_is_not_plain_float32_on_the_cpu_is_left_to_torch() -> None:
    plain = torch.randn(3, 4)
    assert token_rows.is_ours(plain, torch.nn.Parameter(plain))
    assert not token_rows.is_ours(plain, plain.double())
    assert not token_rows.is_ours(plain.bfloat16())
    assert not token_rows.is_ours(plain.to("meta"))
    assert not token_rows.is_ours(plain[:0])
    with torch._subclasses.FakeTensorMode() as mode:
        assert not token_rows.is_ours(mode.from_tensor(plain))


@pytest.mark.parametrize("count", [1, 7, 8, 4096, 9001])
def test_gelu_and_its_gradient_are_those_of_torch(count: int) -> None:
    hidden = 4 * torch.randn(count, generator=torch.Generator().manual_seed(0))
    grad = torch.randn(count, generator=torch.Generator().manual_seed(1))
    truth = torch.nn.functional.gelu(hidden.double())
    slope = torch.ops.aten.gelu_backward(grad.double(), hidden.double())
    of_torch = torch.nn.functional.gelu(hidden), torch.ops.aten.gelu_backward(grad, hidden)
    got = token_rows.gelu(hidden, grad)
    assert max_err(got, truth) <= budget(of_torch[0], truth, torch.float32)
    assert max_err(grad, slope) <= budget(of_torch[1], slope, torch.float32)


def test_gelu_without_a_gradient_is_the_same() -> None:
    hidden = torch.randn(3, 50)
    alone = token_rows.gelu(hidden).clone()
    assert torch.equal(token_rows.gelu(hidden, torch.ones_like(hidden)), alone)
