# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The linear layer with weights of 8 bits, against its definition and against float64."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from tolerance import assert_close, assert_same_for_any_number_of_threads
from torch import Tensor

from vitadapter_fast import BackendUnavailable
from vitadapter_fast.ops import int8_linear, int8_weight
from vitadapter_fast.ops.int8_linear import cpu

REASON = cpu.processor_reason()
needs_kernel = pytest.mark.skipif(REASON is not None, reason=str(REASON))
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


class Case(NamedTuple):
    """One shape of a call."""

    name: str
    shape: tuple[int, ...]
    outputs: int
    has_bias: bool = True
    has_plus: bool = True


CASES = [
    Case("block", (1, 64, 384), 1152, has_plus=False),
    Case("rows_and_channels_left_over", (2, 7, 50), 33),
    Case("one_row", (1, 1, 384), 48),
    Case("one_of_each", (1, 1, 1), 1),
    Case("a_block_and_one", (3, 9, 64), 17, has_bias=False),
    Case("two_blocks", (11, 5), 32, has_bias=False, has_plus=False),
    Case("many_strips", (1, 40, 36), 1000),
    Case("many_rows", (1, 700, 12), 49),
    Case("no_dimension_of_rows", (30,), 20),
    Case("no_rows", (0, 3, 20), 20),
]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs(case: Case, dtype: torch.dtype) -> dict[str, Any]:
    K, C = case.shape[-1], case.outputs
    weight, scales = int8_weight(random(C, K, seed=1))
    return {
        "x": random(*case.shape).to(dtype),
        "weight": weight,
        "scales": scales,
        "bias": random(C, seed=2).float() if case.has_bias else None,
        "plus": random(*case.shape[:-1], C, seed=3).to(dtype) if case.has_plus else None,
    }


def wide(call: dict[str, Any]) -> dict[str, Any]:
    """Return the call whose tokens are float64: its rounding is the same."""
    return {
        key: value.double() if key in ("x", "plus") and value is not None else value
        for key, value in call.items()
    }


def a_step(call: dict[str, Any]) -> float:
    """Return what one step of a token may change: GELU's last bits may round it to the next."""
    if call["x"].numel() == 0:
        return 0.0
    reach = F.gelu(call["x"].double()).abs().amax() * 2 / 255
    return float(reach * 128 * call["scales"].max())


def check(
    case: Case,
    dtype: torch.dtype,
    has_gelu: bool,
    change: Callable[[Tensor], Tensor] = lambda tensor: tensor,
) -> None:
    """Compare the kernel with the truth, float64 on the same rounded inputs."""
    call = inputs(case, dtype)
    for name in ("x", "plus"):
        call[name] = None if call[name] is None else change(call[name])
    truth = int8_linear(**wide(call), has_gelu=has_gelu, backend="reference")
    reference = int8_linear(**call, has_gelu=has_gelu, backend="reference")
    got = int8_linear(**call, has_gelu=has_gelu, backend="cpu")
    assert got.dtype == dtype and got.is_contiguous()
    assert_close(got, reference, truth, "out", more=a_step(call) if has_gelu else 0.0)


@needs_kernel
@pytest.mark.usefixtures("nan_filled_memory")
@pytest.mark.parametrize("has_gelu", [False, True], ids=["as_it_is", "gelu"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_kernel_is_the_definition(case: Case, dtype: torch.dtype, has_gelu: bool) -> None:
    check(case, dtype, has_gelu)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda tensor: tensor.mT.contiguous().mT,
    "every_second": lambda tensor: torch.stack([tensor, tensor], -1)[..., 0],
    "one_element_off": lambda tensor: torch.cat([tensor.flatten()[:1], tensor.flatten()])[
        1:
    ].view_as(tensor),
    "expanded": lambda tensor: tensor[:1].expand_as(tensor),
}


@needs_kernel
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("changed", ["x", "plus", "weight", "scales", "bias"])
def test_memory_layouts(changed: str, layout: str) -> None:
    call = inputs(CASES[1], torch.float32)
    if not (layout == "transposed" and call[changed].dim() < 2):
        call[changed] = LAYOUTS[layout](call[changed])
    wanted = int8_linear(**call, backend="reference")
    torch.testing.assert_close(int8_linear(**call, backend="cpu"), wanted)


@needs_kernel
@pytest.mark.parametrize("case", [CASES[1], CASES[6], CASES[7]], ids=lambda case: case.name)
def test_any_number_of_threads_gives_the_same_bits(case: Case) -> None:
    call = inputs(case, torch.float32)
    assert_same_for_any_number_of_threads(
        lambda: {"out": int8_linear(**call, has_gelu=True, backend="cpu")}
    )


ROWS = {
    "zeros": [0.0] * 8,
    "one_sign": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 255.0],
    "other_sign": [-1.0, -2.0, -3.0, -4.0, -5.0, -6.0, -7.0, -8.0],
    "ties": [-127.5, 127.5, 0.5, 1.5, 2.5, -0.5, -1.5, 100.0],
    "largest": [3e38, -3e38, 1e38, 0.0, 1.0, -1.0, 2e38, -2e38],
    "subnormal": [1e-45, -1e-40, 0.0, 1e-39, 0.0, 0.0, 0.0, 0.0],
    "small": [1e-30, -2e-30, 3e-30, 0.0, 0.0, 0.0, 0.0, 1e-31],
    "nan": [0.0, float("nan"), 1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
    "infinity": [0.0, float("inf"), 1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
    "minus_infinity": [0.0, -float("inf"), 1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
}


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=needs_kernel)])
@pytest.mark.parametrize("row", ROWS)
def test_rows_of_special_numbers(row: str, backend: str) -> None:
    x = torch.tensor([[1.0] * 8, ROWS[row], [2.0] * 8])
    weight, scales = int8_weight(torch.eye(8))
    got = int8_linear(x, weight, scales, backend=backend)
    torch.testing.assert_close(got[::2], x[::2])  # whatever its neighbor is
    if row in ("nan", "infinity", "minus_infinity"):
        assert got[1].isnan().all()
    else:
        step = max(max(ROWS[row]), 0.0) / 255 - min(min(ROWS[row]), 0.0) / 255
        assert (got[1].double() - x[1]).abs().max() <= max(0.501 * step, 2e-38)


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=needs_kernel)])
def test_autocast_changes_nothing(backend: str) -> None:
    call = inputs(CASES[1], torch.float32)
    leaf = call["x"].requires_grad_()
    found = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = int8_linear(**call, backend=backend)
            found.append((out.detach(), *torch.autograd.grad(out.sum(), leaf)))
    assert all(map(torch.equal, *found))


def test_a_layer_is_a_hundredth_off() -> None:
    """Of normal numbers the relative error is 1.0 %, whatever the size."""
    for K in (64, 384, 1536):
        x, weight, bias = random(1, 50, K), random(96, K, seed=1), random(96, seed=2)
        wanted = F.linear(x, weight, bias)
        got = int8_linear(x.float(), *int8_weight(weight), bias.float()).double()
        assert float((got - wanted).norm() / wanted.norm()) < 0.013


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_weight_is_rounded_to_half_a_step(dtype: torch.dtype) -> None:
    weight = random(21, 10).to(dtype)
    weight[3] = 0
    blocks, scales = int8_weight(weight)
    assert blocks.shape == (2, 3, 16, 4) and blocks.is_contiguous()
    whole = blocks.transpose(1, 2).reshape(32, 12)
    assert not whole[21:].any() and not whole[:, 10:].any() and not whole[3].any()
    assert whole[:3].abs().amax(1).eq(127).all()
    error = (whole[:21, :10] * scales[:, None].double() - weight.double()).abs()
    assert (error <= 0.5001 * scales[:, None]).all()


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=needs_kernel)])
@pytest.mark.parametrize("has_gelu", [False, True])
def test_gradients_are_those_of_the_rounded_weight(has_gelu: bool, backend: str) -> None:
    call = inputs(CASES[1], torch.float32)
    for name in ("x", "plus"):
        call[name].requires_grad_()
    leaves = [call["x"], call["plus"]]
    cotangent = random(2, 7, 33, seed=4).float()
    out = int8_linear(**call, has_gelu=has_gelu, backend=backend)
    got = torch.autograd.grad(out, leaves, cotangent)
    matrix = call["weight"].transpose(1, 2).reshape(48, 52)[:33, :50] * call["scales"][:, None]
    smooth = F.linear(F.gelu(call["x"]) if has_gelu else call["x"], matrix) + call["plus"]
    for grad, wanted in zip(got, torch.autograd.grad(smooth, leaves, cotangent), strict=True):
        torch.testing.assert_close(grad, wanted)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "x": ({"x": torch.rand(2, 13)}, r"weight must be \(2, 4, 16, 4\)"),
    "no_channels": ({"x": torch.rand(2, 0)}, "with 1 to 65536 channels"),
    "integers": ({"x": torch.ones(2, 10, dtype=torch.int32)}, "x must be a floating tensor"),
    "float_weight": ({"weight": torch.rand(2, 3, 16, 4)}, "weight must be torch.int8"),
    "matrix": ({"weight": torch.ones(21, 10, dtype=torch.int8)}, "int8_weight makes it of a"),
    "scales": ({"scales": torch.rand(21, 1)}, r"scales must be \[C\]"),
    "bias": ({"bias": torch.rand(20)}, r"bias must be \(21,\) to match scales"),
    "narrow": ({"scales": torch.rand(21).half()}, "scales must be torch.float32"),
    "plus": ({"plus": torch.rand(2, 20)}, r"plus must be \(2, 21\) to match x and scales"),
    "plus_dtype": ({"plus": torch.rand(2, 21).half()}, "plus must be torch.float32 with x"),
    "leaf": ({"scales": torch.rand(21).requires_grad_()}, "scales must not require gradients"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_call_is_refused(change: dict[str, Any], message: str) -> None:
    weight, scales = int8_weight(torch.rand(21, 10))
    call = {"x": torch.rand(2, 10), "weight": weight, "scales": scales} | change
    with pytest.raises(ValueError, match=f"int8_linear: .*{message}"):
        int8_linear(**call)


NO_WEIGHT = {
    "vector": torch.rand(3),
    "empty": torch.rand(0, 4),
    "integers": torch.ones(2, 2, dtype=torch.int8),
    "nan": torch.full((2, 2), torch.nan),
    "beyond float32": torch.full((2, 2), 1e300, dtype=torch.float64),
    "float8": torch.ones(2, 2).to(torch.float8_e4m3fn),
}


@pytest.mark.parametrize("weight", NO_WEIGHT.values(), ids=NO_WEIGHT)
def test_what_is_no_weight_is_refused(weight: Tensor) -> None:
    with pytest.raises(ValueError, match="int8_weight: weight must be"):
        int8_weight(weight)


def test_kernel_refuses_what_it_does_not_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    call = inputs(CASES[1], torch.float64)
    with pytest.raises(BackendUnavailable, match="computes in float32, got float64"):
        int8_linear(**call, backend="cpu")
    monkeypatch.setattr(cpu, "processor_reason", lambda: "it is an abacus")
    with pytest.raises(BackendUnavailable, match="it is an abacus"):
        int8_linear(**inputs(CASES[2], torch.float32), backend="cpu")
