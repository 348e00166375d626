# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Every backend of the attention within windows against the float64 reference."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import ALL_WINDOW, AWKWARD_WINDOW, REAL_WINDOW, WindowCase, make_qkv
from processor import features
from tolerance import assert_close, assert_same_for_any_number_of_threads
from torch import Tensor

import vitadapter_fast
from vitadapter_fast import BackendUnavailable
from vitadapter_fast.ops import window_attention
from vitadapter_fast.ops.window_attention.reference import merge_windows, partition_windows

# Triton runs here as well: test_window_attention_triton.py.
KERNELS = ["cpu"]
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
NAMES = ("out", "qkv")
OP = torch.ops.vitadapter_fast.window_attention.default


def case_id(case: WindowCase) -> str:
    return case.name


def dtype_id(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def cotangent_of(case: WindowCase, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    B, N, _, M, D = case.shape
    return torch.randn(B, N, M * D, generator=generator, dtype=torch.float64).to(dtype)


def results(case: WindowCase, qkv: Tensor, backend: str, cotangent: Tensor) -> dict[str, Tensor]:
    leaf = qkv.detach().requires_grad_()
    out = window_attention(leaf, case.hw, case.window_size, backend=backend)
    (grad,) = torch.autograd.grad(out, leaf, cotangent.to(out))
    return dict(zip(NAMES, (out.detach(), grad), strict=True))


def check(
    case: WindowCase,
    dtype: torch.dtype,
    backend: str,
    device: str = "cpu",
    seed: int = 0,
    spread: float = 1.5,
    change: Callable[[Tensor], Tensor] = lambda qkv: qkv,
) -> None:
    """Compare the output and the gradient with the truth, float64 on the same rounded inputs."""
    qkv = change(make_qkv(case, dtype=dtype, seed=seed, spread=spread))
    cotangent = cotangent_of(case, dtype)
    truth = results(case, qkv.double(), "reference", cotangent)
    scale = qkv.float() if dtype == torch.float64 else qkv
    reference = results(case, scale, "reference", cotangent)
    got = results(case, qkv.to(device), backend, cotangent)
    for name, tensor in got.items():
        assert tensor.dtype == dtype
        more = rounding_of_slopes(qkv, cotangent) if (name, backend) == ("qkv", "triton") else 0.0
        assert_close(tensor.cpu(), reference[name], truth[name], name, more)


def rounding_of_slopes(qkv: Tensor, cotangent: Tensor) -> float:
    """Return what rounding may leave of a logit's gradient where it cancels.

    grad . value - grad . out is zero for a query that sees one key; the reference computes both in
    the same order, a kernel in two passes does not.
    """
    if qkv.numel() == 0:
        return 0.0
    query, key, value = qkv.double().unbind(2)
    grad = cotangent.double().view(value.shape)
    slope = grad.norm(dim=-1).amax() * value.norm(dim=-1).amax()
    largest = torch.maximum(query.abs().amax(), key.abs().amax()) * qkv.shape[-1] ** -0.5
    return (slope * largest).item() * torch.finfo(qkv.dtype).eps / 4


def composition(case: WindowCase, qkv: Tensor) -> Tensor:
    """Pad, cut into windows, attend by torch's own kernel, merge."""
    windows = partition_windows(qkv.flatten(2), case.hw, case.window_size)
    heads = torch.unflatten(windows, 2, (3, case.heads, -1)).permute(2, 0, 3, 1, 4)
    out = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    return merge_windows(out, case.hw, case.window_size)


@pytest.mark.parametrize("case", [REAL_WINDOW[2], *AWKWARD_WINDOW[:-1]], ids=case_id)
def test_reference_is_torch_attention_in_padded_windows(case: WindowCase) -> None:
    qkv = make_qkv(case)
    got = window_attention(qkv, case.hw, case.window_size, backend="reference")
    torch.testing.assert_close(got, composition(case, qkv))


@pytest.mark.usefixtures("nan_filled_memory")
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("case", ALL_WINDOW, ids=case_id)
@pytest.mark.parametrize("backend", KERNELS)
def test_output_and_gradient(backend: str, case: WindowCase, dtype: torch.dtype) -> None:
    check(case, dtype, backend)


@pytest.mark.parametrize("spread", [0.0, 0.01, 12.0])
@pytest.mark.parametrize("backend", KERNELS)
def test_even_and_very_uneven_softmax(
    backend: str, spread: float, case: WindowCase = AWKWARD_WINDOW[3]
) -> None:
    check(case, torch.float32, backend, spread=spread)


@pytest.mark.parametrize("backend", [*KERNELS, "reference"])
def test_padding_keys_take_their_share_of_the_softmax(backend: str) -> None:
    # A token alone in a window of four: its key has logit 2, each of the three zeros has 0.
    qkv = torch.tensor([2.0, 1.0, 5.0]).view(1, 1, 3, 1, 1)
    share = torch.tensor(2.0).exp() / (torch.tensor(2.0).exp() + 3)
    got = window_attention(qkv, (1, 1), 2, backend=backend)
    torch.testing.assert_close(got.flatten(), 5 * share[None])


@pytest.mark.parametrize("backend", KERNELS)
def test_logits_far_below_those_of_the_padding_vanish(backend: str) -> None:
    qkv = torch.tensor([-100.0, 10.0, 5.0]).view(1, 1, 3, 1, 1)
    assert window_attention(qkv, (1, 1), 2, backend=backend).item() == 0
    assert window_attention(qkv, (1, 1), 1, backend=backend).item() == 5


@pytest.mark.parametrize("backend", KERNELS)
def test_saved_logsumexp_counts_the_padding(
    backend: str, case: WindowCase = AWKWARD_WINDOW[3]
) -> None:
    qkv = make_qkv(case, dtype=torch.float32)
    _, got = OP(qkv, case.hw, case.window_size, backend=backend)
    _, wanted = OP(qkv.double(), case.hw, case.window_size, backend="reference")
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backend", KERNELS)
def test_strided_inputs_and_cotangent_are_read_where_they_lie(
    backend: str, case: WindowCase = AWKWARD_WINDOW[3]
) -> None:
    qkv = make_qkv(case, dtype=torch.float32)
    cotangent = cotangent_of(case, torch.float32)
    # Some channels and some tokens of something wider and longer.
    wide = F.pad(qkv.flatten(2), (8, 8, 3, 5), value=float("nan"))[:, 3:-5, 8:-8]
    wide = torch.unflatten(wide, 2, qkv.shape[2:])
    part = F.pad(cotangent, (16, 0, 1, 1), value=float("nan"))[:, 1:-1, 16:]
    assert not wide.is_contiguous() and not part.is_contiguous()
    wanted = results(case, qkv, backend, cotangent)
    got = results(case, wide, backend, part)
    assert all(torch.equal(got[name], wanted[name]) for name in NAMES)


@pytest.mark.parametrize("backend", KERNELS)
def test_transposed_inputs_and_cotangent_give_the_same(
    backend: str, case: WindowCase = AWKWARD_WINDOW[3]
) -> None:
    qkv = make_qkv(case, dtype=torch.float32)
    cotangent = cotangent_of(case, torch.float32)
    wanted = results(case, qkv, backend, cotangent)
    turned = qkv.transpose(2, 3).contiguous().transpose(2, 3)
    got = results(case, turned, backend, cotangent.transpose(1, 2).contiguous().transpose(1, 2))
    assert all(torch.equal(got[name], wanted[name]) for name in NAMES)


@pytest.mark.parametrize("part", [0, 1, 2], ids=["query", "key", "value"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("backend", KERNELS)
def test_nan_and_infinity_reach_what_they_must_and_no_other_window(
    backend: str, bad: float, part: int
) -> None:
    case = WindowCase("bad", 2, 2, 16, (5, 7), 4)
    qkv = make_qkv(case, dtype=torch.float32)
    cotangent = cotangent_of(case, torch.float32)
    clean = results(case, qkv, backend, cotangent)
    qkv[0, 9, part, 1, 3] = bad  # row 1, column 2: in the first window of 4 x 4
    got = results(case, qkv, backend, cotangent)
    wanted = results(case, qkv, "reference", cotangent)
    in_window = torch.zeros(case.hw, dtype=torch.bool)
    in_window[:4, :4] = True
    for name in NAMES:
        is_hit = torch.zeros_like(got[name], dtype=torch.bool)
        hit = is_hit[0].unflatten(-1, (2, 16)) if name == "out" else is_hit[0].movedim(1, 2)
        hit[in_window.flatten(), 1] = True
        assert torch.equal(got[name][~is_hit], clean[name][~is_hit]), name
        assert torch.equal(got[name].isfinite(), wanted[name].isfinite()), name
        assert not got[name].isfinite().all(), name


@pytest.mark.parametrize("case", [REAL_WINDOW[0], AWKWARD_WINDOW[3]], ids=case_id)
def test_cpu_results_are_bit_equal_for_any_number_of_threads(case: WindowCase) -> None:
    qkv = make_qkv(case, dtype=torch.float32)
    cotangent = cotangent_of(case, torch.float32)
    assert_same_for_any_number_of_threads(lambda: results(case, qkv, "cpu", cotangent))


def test_only_input_output_and_logsumexp_are_saved() -> None:
    case = REAL_WINDOW[2]
    qkv = make_qkv(case, dtype=torch.float32).requires_grad_()
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        out = window_attention(qkv, case.hw, case.window_size)
    assert [tensor.data_ptr() for tensor in saved[:2]] == [qkv.data_ptr(), out.data_ptr()]
    assert [tuple(tensor.shape) for tensor in saved[2:]] == [(2, 340, 1)]


SMALL = WindowCase("small", 2, 2, 3, (3, 4), 2)


def op_args(dtype: torch.dtype) -> tuple[Any, ...]:
    return make_qkv(SMALL, dtype=dtype).requires_grad_(), list(SMALL.hw), SMALL.window_size


def test_opcheck() -> None:
    torch.library.opcheck(OP, op_args(torch.float32))


@pytest.mark.parametrize("backend", [*KERNELS, "reference"])
def test_gradcheck(backend: str) -> None:
    qkv, *rest = op_args(torch.float64)
    run = lambda leaf: window_attention(leaf, *rest, backend=backend)  # noqa: E731
    assert torch.autograd.gradcheck(run, qkv)


INDUCTOR = pytest.param("inductor", marks=pytest.mark.thorough)


@pytest.mark.parametrize("compiler", ["aot_eager", INDUCTOR])
def test_compile_fullgraph_with_gradient(compiler: str) -> None:
    qkv, *rest = op_args(torch.float32)

    def run(leaf: Tensor) -> Tensor:
        return 2 * window_attention(leaf, *rest)

    got, wanted = torch.compile(run, fullgraph=True, backend=compiler)(qkv), run(qkv)
    torch.testing.assert_close(got, wanted)
    (a,), (b,) = (torch.autograd.grad(out.square().sum(), qkv) for out in (got, wanted))
    torch.testing.assert_close(a, b)


def test_compile_with_dynamic_grids() -> None:
    def run(qkv: Tensor, h: int, w: int) -> Tensor:
        return window_attention(qkv, (h, w), 3)

    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend="aot_eager")
    for h, w in ((4, 5), (6, 7), (9, 3)):
        qkv = make_qkv(WindowCase("dynamic", 1, 2, 8, (h, w), 3), dtype=torch.float32)
        torch.testing.assert_close(compiled(qkv, h, w), run(qkv, h, w))


def test_second_derivatives_are_refused() -> None:
    qkv, *rest = op_args(torch.float64)
    out = window_attention(qkv, *rest)
    with pytest.raises(NotImplementedError, match="second derivatives"):
        torch.autograd.grad(out, qkv, torch.ones_like(out).requires_grad_(), create_graph=True)


def test_autocast_attends_in_16_bits() -> None:
    qkv, *rest = op_args(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = window_attention(qkv, *rest)
    by_hand = window_attention(qkv.bfloat16(), *rest)
    assert out.dtype == torch.bfloat16 and torch.equal(out, by_hand)
    assert torch.autograd.grad(out.float().sum(), qkv)[0].dtype == torch.float32


def test_meta_tensors_give_meta_results() -> None:
    out = window_attention(torch.empty(2, 12, 3, 2, 5, device="meta"), (3, 4), 2)
    assert out.device.type == "meta" and out.shape == (2, 12, 10)


def test_with_block_forces_the_backend_of_forward_and_backward(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from vitadapter_fast.ops.window_attention import reference

    ran = []
    for name in ("forward", "backward"):
        run = getattr(reference, name)
        monkeypatch.setattr(
            reference, name, lambda *args, run=run, name=name: ran.append(name) or run(*args)
        )
    qkv, *rest = op_args(torch.float32)
    with vitadapter_fast.backend("reference"):
        out = window_attention(qkv, *rest)
    torch.autograd.grad(out.sum(), qkv)  # outside the block, as an optimizer step is
    assert ran == ["forward", "backward"]


def test_cuda_is_named_as_the_backend_that_the_op_lacks() -> None:
    qkv, *rest = op_args(torch.float32)
    with pytest.raises(BackendUnavailable, match="^window_attention: has no backend 'cuda', only"):
        window_attention(qkv, *rest, backend="cuda")


def test_choice_of_a_backend_for_the_whole_model_leaves_alone_the_op_that_lacks_it() -> None:
    qkv, *rest = op_args(torch.float32)
    with vitadapter_fast.backend("cuda"):
        out = window_attention(qkv, *rest)
        torch.autograd.grad(out.sum(), qkv)
    assert torch.equal(out, window_attention(qkv, *rest))


BAD_CALLS: dict[str, tuple[dict[str, Any], str]] = {
    "rank": ({"qkv": torch.zeros(1, 4, 24)}, r"qkv must be \[B, h \* w, 3, M, D\].*unflatten"),
    "two_parts": ({"qkv": torch.zeros(1, 4, 2, 1, 8)}, r"qkv must be .* got \(1, 4, 2, 1, 8\)"),
    "no_heads": ({"qkv": torch.zeros(1, 4, 3, 0, 8)}, "with a head and a channel"),
    "no_channels": ({"qkv": torch.zeros(1, 4, 3, 1, 0)}, "with a head and a channel"),
    "tokens": ({"hw": (2, 3)}, r"hw \(2, 3\) must hold as many tokens as qkv, 4"),
    "negative": ({"hw": (-2, -2)}, r"positive \(h, w\) of the token grid, got \(-2, -2\)"),
    "three_sizes": ({"hw": (2, 2, 1)}, r"positive \(h, w\) of the token grid"),
    "window": (
        {"window_size": 0},
        "window_size must be 1 token or more, or None for the whole grid, got 0",
    ),
    "integer": ({"qkv": torch.zeros(1, 4, 3, 1, 8, dtype=torch.long)}, "must be a floating tensor"),
}


@pytest.mark.parametrize(("change", "message"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_bad_call_is_a_value_error(change: dict[str, Any], message: str) -> None:
    call: dict[str, Any] = {"qkv": torch.zeros(1, 4, 3, 1, 8), "hw": (2, 2), "window_size": 2}
    window_attention(**call)
    with pytest.raises(ValueError, match=f"^window_attention: .*{message}"):
        window_attention(**(call | change))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("hw", [(1, 1), (5, 7), (1, 53), (16, 12)], ids=str)
def test_whole_grid_is_torch_attention_without_padding(hw: tuple[int, int], backend: str) -> None:
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(2, hw[0] * hw[1], 3, 3, 20, generator=generator, dtype=torch.float64)
    cotangent = torch.randn(2, hw[0] * hw[1], 60, generator=generator, dtype=torch.float64)
    qkv.requires_grad_()
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    wanted = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    got = window_attention(qkv, hw, None, backend=backend)
    torch.testing.assert_close(got, wanted)
    pair = [torch.autograd.grad(out, qkv, cotangent)[0] for out in (got, wanted)]
    torch.testing.assert_close(*pair)


@pytest.mark.parametrize("one", [True, np.int64(1), torch.tensor(1)])
def test_a_window_size_of_any_integer_type(one: Any) -> None:
    qkv = torch.randn(1, 6, 3, 2, 4)
    for backend in ("cpu", "reference"):
        wanted = window_attention(qkv, (2, 3), 1, backend=backend)
        assert torch.equal(window_attention(qkv, (2, 3), one, backend=backend), wanted)


@pytest.mark.thorough
@pytest.mark.skipif("VITADAPTER_ISA" in os.environ, reason="already of another build")
@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512bf16"])
def test_other_builds_of_the_cpu_kernels_pass_the_same_cases(isa: str) -> None:
    if isa == "avx512bf16" and "avx512_bf16" not in features():
        pytest.skip("this processor has no AVX512_BF16")
    folder = Path(__file__).parent
    files = [__file__, folder / "test_random_cases.py", folder.parent / "test_build.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files]
    some = "(test_output_and_gradient and (prime or odd or one or wide))"
    chosen = f"(cpu and ({some} or nan or softmax)) or (test_windows and not triton)"
    if features():  # elsewhere there is one build
        chosen += " or instruction_set"
    command += ["-k", chosen]
    environment = os.environ | {"VITADAPTER_ISA": isa, "VITADAPTER_FUZZ": "0.2"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "skipped" not in done.stdout, done.stdout[-3000:]
