# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Every backend of batch norm against the float64 reference, and the reference against torch's."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from tolerance import assert_same_for_any_number_of_threads, budget, max_err
from torch import Tensor

from vitadapter_fast.ops import batch_norm

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
NAMES = ("out", "mean", "variance", "tokens", "weight", "bias")


class NormCase(NamedTuple):
    name: str
    batch: int
    num_tokens: int
    channels: int
    has_relu: bool = False
    has_planes: bool = False
    mean: float = 0.0


CASES = [
    NormCase("stem_s_96", 1, 48 * 48, 64, has_relu=True),
    NormCase("level_b_96", 2, 24 * 24, 768, has_planes=True),
    NormCase("relu_to_planes", 2, 300, 72, has_relu=True, has_planes=True),
    NormCase("far_from_zero", 2, 257, 33, has_planes=True, mean=300.0),
    NormCase("two_numbers", 2, 1, 40),
    NormCase("one_channel", 3, 131, 1, has_relu=True),
    NormCase("seven_channels", 1, 128, 7, has_planes=True),
    NormCase("odd_channels", 1, 129, 173),
    NormCase("constant_batch", 1, 1, 16),
]


class NormInputs(NamedTuple):
    case: NormCase
    tokens: Tensor
    weight: Tensor
    bias: Tensor

    def to(self, dtype: torch.dtype) -> "NormInputs":
        wide = torch.promote_types(dtype, torch.float32)
        return NormInputs(
            self.case, self.tokens.to(dtype), self.weight.to(wide), self.bias.to(wide)
        )

    def map(self, change: Callable[[Tensor], Tensor]) -> "NormInputs":
        return NormInputs(self.case, *(change(tensor) for tensor in self[1:]))

    def run(self, backend: str | None = None) -> tuple[Tensor, Tensor, Tensor]:
        relu, planes = self.case.has_relu, self.case.has_planes
        return batch_norm(*self[1:], has_relu=relu, has_planes=planes, backend=backend)


def make_norm_inputs(
    case: NormCase, *, seed: int = 0, dtype: torch.dtype = torch.float64
) -> NormInputs:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(case.batch, case.num_tokens, case.channels, generator=generator)
    weight = torch.randn(case.channels, generator=generator)
    bias = torch.randn(case.channels, generator=generator)
    return NormInputs(case, tokens + case.mean, weight, bias).to(dtype)


def cotangent_of(inputs: NormInputs) -> Tensor:
    B, N, C = inputs.tokens.shape
    shape = (B, C, N) if inputs.case.has_planes else (B, N, C)
    generator = torch.Generator().manual_seed(1)
    return torch.randn(shape, generator=generator).to(inputs.tokens.dtype)


def results(inputs: NormInputs, backend: str, cotangent: Tensor) -> dict[str, Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in inputs[1:]]
    out, mean, variance = NormInputs(inputs.case, *leaves).run(backend)
    grads = torch.autograd.grad(out, leaves, cotangent.to(out))
    return dict(zip(NAMES, (out.detach(), mean, variance, *grads), strict=True))


def check(inputs: NormInputs, backend: str) -> None:
    """Compare everything with the truth, float64 on the same rounded inputs."""
    cotangent, dtype = cotangent_of(inputs), inputs.tokens.dtype
    truth = results(inputs.to(torch.float64), "reference", cotangent)
    reference = results(
        inputs.to(torch.float32) if dtype == torch.float64 else inputs, "reference", cotangent
    )
    got = results(inputs, backend, cotangent)
    steepest = 1 + (inputs.weight.abs() * torch.rsqrt(truth["variance"] + 1e-5)).max().item()
    if dtype == torch.float64:  # the truth's own mean is no more exact, and sums multiply its error
        steepest *= inputs.tokens[..., 0].numel() ** 0.5
    for name, tensor in got.items():
        assert tensor.dtype == (dtype if name in ("out", "tokens") else inputs.weight.dtype)
        # Sums over all tokens and a mean that is subtracted: some units of the numbers' own size.
        more = 16 * torch.finfo(inputs.weight.dtype).eps * (1 + abs(inputs.case.mean)) * steepest
        if name in ("weight", "bias"):  # up to 128 tokens are added up one after the other
            more *= min(inputs.case.num_tokens, 128) ** 0.5
        error = max_err(tensor, truth[name])
        assert error <= budget(reference[name], truth[name], tensor.dtype) + more, (name, error)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_reference_is_torchs_batch_norm_in_training(case: NormCase) -> None:
    if case.batch * case.num_tokens == 1:
        pytest.skip("torch refuses one number per channel")
    inputs = make_norm_inputs(case)
    running = torch.zeros(case.channels).double(), torch.zeros(case.channels).double()
    wanted = F.batch_norm(
        inputs.tokens.transpose(1, 2), *running, *inputs[2:], training=True, momentum=1.0
    )
    wanted = wanted.relu() if case.has_relu else wanted
    out, mean, variance = inputs.run("reference")
    torch.testing.assert_close(out if case.has_planes else out.transpose(1, 2), wanted)
    count = case.batch * case.num_tokens
    torch.testing.assert_close(mean, running[0])
    torch.testing.assert_close(variance * count / (count - 1), running[1])


@pytest.mark.usefixtures("nan_filled_memory")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_output_statistics_and_gradients(case: NormCase, dtype: torch.dtype) -> None:
    check(make_norm_inputs(case, dtype=dtype), "cpu")


@pytest.mark.parametrize("case", CASES[:4], ids=lambda case: case.name)
def test_strided_inputs_give_the_same(case: NormCase) -> None:
    dense = make_norm_inputs(case, dtype=torch.float32)
    cotangent = cotangent_of(dense)
    wanted = results(dense, "cpu", cotangent)
    wide = F.pad(dense.tokens, (8, 8, 3, 5), value=float("nan"))[:, 3:-5, 8:-8]
    mixed = dense.tokens.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    for tokens in (wide, mixed):
        part = F.pad(cotangent, (4, 4, 1, 1), value=float("nan"))[:, 1:-1, 4:-4]
        got = results(dense._replace(tokens=tokens), "cpu", part)
        for name in wanted:
            torch.testing.assert_close(got[name], wanted[name], rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("case", CASES[:4], ids=lambda case: case.name)
def test_results_are_bit_equal_for_any_number_of_threads(case: NormCase) -> None:
    inputs = make_norm_inputs(case, dtype=torch.float32)
    cotangent = cotangent_of(inputs)
    assert_same_for_any_number_of_threads(lambda: results(inputs, "cpu", cotangent))


@pytest.mark.parametrize("case", CASES[:3], ids=lambda case: case.name)
def test_nan_spreads_over_its_channel_and_no_further(case: NormCase) -> None:
    inputs = make_norm_inputs(case, dtype=torch.float32)
    clean = inputs.run("cpu")[0]
    inputs.tokens[0, 5, 3] = float("nan")
    out, mean, variance = inputs.run("cpu")
    if case.has_planes:
        out, clean = out.transpose(1, 2), clean.transpose(1, 2)
    hit = torch.zeros(case.channels, dtype=torch.bool)
    hit[3] = True
    assert out[..., hit].isnan().all() and torch.equal(out[..., ~hit], clean[..., ~hit])
    assert torch.equal(mean.isnan(), hit) and torch.equal(variance.isnan(), hit)


def test_relu_lets_the_gradient_of_nan_pass_as_torchs_does() -> None:
    for channels in (3, 40):  # alone and in vectors
        inputs = make_norm_inputs(NormCase("", 1, 16, channels, has_relu=True), dtype=torch.float32)
        inputs.bias[1] = float("nan")
        got, wanted = (results(inputs, name, cotangent_of(inputs)) for name in ("cpu", "reference"))
        torch.testing.assert_close(got["bias"], wanted["bias"], equal_nan=True)


def test_result_is_not_saved() -> None:
    inputs = make_norm_inputs(CASES[0], dtype=torch.float32)
    leaves = [tensor.requires_grad_() for tensor in inputs[1:]]
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        _, mean, variance = NormInputs(inputs.case, *leaves).run()
    given = [tensor.data_ptr() for tensor in (*leaves, mean, variance)]
    assert [tensor.data_ptr() for tensor in saved] == given


OP = torch.ops.vitadapter_fast.batch_norm.default
SMALL = NormCase("small", 2, 7, 3, has_relu=True, has_planes=True)


def op_args(dtype: torch.dtype) -> tuple[Any, ...]:
    leaves = [tensor.requires_grad_() for tensor in make_norm_inputs(SMALL, dtype=dtype)[1:]]
    return (*leaves, 1e-5, SMALL.has_relu, SMALL.has_planes)


def test_opcheck() -> None:
    torch.library.opcheck(OP, op_args(torch.float32))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_gradcheck(backend: str) -> None:
    *leaves, eps, relu, planes = op_args(torch.float64)

    def run(*tensors: Tensor) -> Tensor:
        return OP(*tensors, eps, relu, planes, backend=backend)[0]  # type: ignore[no-any-return]

    assert torch.autograd.gradcheck(run, leaves)


INDUCTOR = pytest.param("inductor", marks=pytest.mark.thorough)


@pytest.mark.parametrize("compiler", ["aot_eager", INDUCTOR])
def test_compile_fullgraph_with_gradients(compiler: str) -> None:
    args = op_args(torch.float32)
    got = torch.compile(OP, fullgraph=True, backend=compiler)(*args)
    wanted = OP(*args)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other)
    grads = [torch.autograd.grad(out[0].square().sum(), args[:3]) for out in (got, wanted)]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


def test_second_derivatives_are_refused() -> None:
    args = op_args(torch.float64)
    out = OP(*args)[0]
    with pytest.raises(NotImplementedError, match="second derivatives"):
        torch.autograd.grad(out, args[0], torch.ones_like(out).requires_grad_(), create_graph=True)


def test_meta_tensors_give_meta_results() -> None:
    tokens, weight = torch.empty(2, 5, 3, device="meta"), torch.empty(3, device="meta")
    out, mean, variance = batch_norm(tokens, weight, weight, has_planes=True)
    assert out.shape == (2, 3, 5) and mean.shape == variance.shape == (3,)
    assert out.device.type == mean.device.type == "meta"


BAD_CALLS: dict[str, tuple[dict[str, Any], str]] = {
    "rank": ({"tokens": torch.zeros(4, 8)}, r"tokens must be \[B, N, C\]"),
    "empty": ({"tokens": torch.zeros(0, 4, 8)}, "with a token and a channel"),
    "integer": ({"tokens": torch.zeros(1, 4, 8, dtype=torch.long)}, "must be a floating tensor"),
    "weight": ({"weight": torch.zeros(7)}, r"weight must be \[8\] to match tokens"),
    "dtype": ({"bias": torch.zeros(8).double()}, "bias must be torch.float32"),
    "half": ({"weight": torch.zeros(8).half()}, "weight must be torch.float32"),
    "device": ({"bias": torch.zeros(8, device="meta")}, "bias must be on cpu with tokens"),
}


@pytest.mark.parametrize(("change", "message"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_bad_call_is_a_value_error(change: dict[str, Any], message: str) -> None:
    call: dict[str, Any] = {
        "tokens": torch.zeros(1, 4, 8),
        "weight": torch.zeros(8),
        "bias": torch.zeros(8),
    }
    batch_norm(**call)
    with pytest.raises(ValueError, match=f"^batch_norm: .*{message}"):
        batch_norm(**(call | change))


@pytest.mark.thorough
@pytest.mark.skipif(os.environ.get("VITADAPTER_ISA") == "portable", reason="already portable")
def test_portable_build_of_the_cpu_kernels_passes_the_same_cases() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
    command += ["-k", "test_output or test_nan"]
    environment = os.environ | {"VITADAPTER_ISA": "portable"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, cwd=Path(__file__).parent
    )
    assert done.returncode == 0, done.stdout[-3000:]
