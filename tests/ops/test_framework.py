# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""What every operator promises to torch and to its callers, whatever the backend."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import REAL, AttnCase, ConvCase, make_conv_inputs, make_inputs
from torch import Tensor

import vitadapter_fast
from vitadapter_fast import BackendUnavailable
from vitadapter_fast.ops import dwconv_gelu, int8_weight, ms_deform_attn, ms_deform_attn_grid

SMALL = AttnCase("small", 2, 2, 8, 2, ((4, 5), (2, 3)), ((3, 2), (1, 2)))
OPS = torch.ops.vitadapter_fast


def flat(sizes: Any) -> list[int]:
    return [size for hw in sizes for size in hw]


def grid_args(dtype: torch.dtype = torch.float64) -> tuple[Any, ...]:
    inputs = make_inputs(SMALL, dtype=dtype).requires_grad()
    sizes = flat(SMALL.level_hw), flat(SMALL.query_hw)
    return inputs.value, *sizes, inputs.points, inputs.weights


def classic_args(dtype: torch.dtype = torch.float64) -> tuple[Any, ...]:
    inputs = make_inputs(SMALL.classic(), dtype=dtype).requires_grad()
    return inputs.value, flat(SMALL.level_hw), inputs.points, inputs.weights


def patch_args(dtype: torch.dtype = torch.float64, mode: str = "bicubic") -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape: int) -> Tensor:
        tensor = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return tensor.to(dtype).requires_grad_()

    return leaf(2, 2, 5, 7), leaf(3, 2, 2, 2), leaf(3), leaf(10, 3), [2, 5], mode


def conv_args(dtype: torch.dtype = torch.float64) -> tuple[Any, ...]:
    case = ConvCase("small", 2, 3, ((4, 3), (1, 2)))
    inputs = make_conv_inputs(case, dtype=dtype).map(lambda tensor: tensor.requires_grad_())
    return inputs.tokens, flat(case.grid_hw), inputs.weight, inputs.bias


def rope_args(dtype: torch.dtype = torch.float64) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(2, 7, 3, 2, 8, generator=generator, dtype=torch.float64).to(dtype)
    angles = torch.randn(5, 2, 2, generator=generator, dtype=torch.float64).to(dtype)
    return qkv.requires_grad_(), angles, [2, 3], False


def int8_args(dtype: torch.dtype = torch.float64) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 7, 10), (21, 10), (21,), (2, 7, 21)
    x, weight, bias, plus = (torch.randn(shape, generator=generator) for shape in shapes)
    x, plus = (each.to(dtype).requires_grad_() for each in (x, plus))
    return x, *int8_weight(weight), bias, plus, True


CALLS = {
    "dwconv_gelu": (OPS.dwconv_gelu.default, conv_args),
    "int8_linear": (OPS.int8_linear.default, int8_args),
    "ms_deform_attn": (OPS.ms_deform_attn.default, classic_args),
    "ms_deform_attn_grid": (OPS.ms_deform_attn_grid.default, grid_args),
    "patch_embed": (OPS.patch_embed.default, patch_args),
    "rope": (OPS.rope.default, rope_args),
}
Args = Callable[..., tuple[Any, ...]]


def leaves(args: tuple[Any, ...]) -> list[Tensor]:
    return [arg for arg in args if isinstance(arg, Tensor) and arg.requires_grad]


def with_leaves(args: tuple[Any, ...], inputs: tuple[Tensor, ...]) -> list[Any]:
    """Return arguments with others in the place of their leaves."""
    queue, replaced = list(inputs), [id(leaf) for leaf in leaves(args)]
    return [queue.pop(0) if id(arg) in replaced else arg for arg in args]


@pytest.mark.parametrize(("op", "make"), CALLS.values(), ids=CALLS)
def test_opcheck(op: Any, make: Args) -> None:
    torch.library.opcheck(op, make(torch.float32))


SMOOTH = {name: call for name, call in CALLS.items() if name != "int8_linear"}  # which rounds


@pytest.mark.parametrize(("op", "make"), SMOOTH.values(), ids=SMOOTH)
def test_gradcheck(op: Any, make: Args) -> None:
    args = make()

    def run(*inputs: Tensor) -> Tensor:
        return op(*with_leaves(args, inputs))  # type: ignore[no-any-return]

    assert torch.autograd.gradcheck(run, leaves(args))


@pytest.mark.thorough
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize(("op", "make"), CALLS.values(), ids=CALLS)
def test_compile_fullgraph_with_gradients(op: Any, make: Args, backend: str) -> None:
    torch._dynamo.reset()  # it compiles the same line for few ops only
    args = make(torch.float32)
    compiled = torch.compile(lambda *a: 2 * op(*a), fullgraph=True, backend=backend)
    wanted, got = 2 * op(*args), compiled(*args)
    torch.testing.assert_close(got, wanted)
    for a, b in zip(
        torch.autograd.grad(got.sum(), leaves(args)),
        torch.autograd.grad(wanted.sum(), leaves(args)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_public_functions_compile_with_dynamic_sizes() -> None:
    def run(value: Tensor, offsets: Tensor, logits: Tensor, h: int, w: int) -> Tensor:
        return ms_deform_attn_grid(value, [(h, w)], [(w, h)], offsets, logits)

    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend="aot_eager")
    for h, w in ((4, 5), (6, 7), (9, 3)):
        case = AttnCase("dynamic", 1, 2, 8, 4, ((h, w),), ((w, h),))
        inputs = make_inputs(case, dtype=torch.float32)
        torch.testing.assert_close(compiled(*inputs.tensors(), h, w), inputs.run())


def test_convolution_compiles_with_dynamic_grids() -> None:
    def run(tokens: Tensor, weight: Tensor, bias: Tensor, h: int, w: int) -> Tensor:
        return dwconv_gelu(tokens, [(h, w), (w, h)], weight, bias)

    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend="aot_eager")
    for h, w in ((4, 5), (6, 7), (9, 3)):
        inputs = make_conv_inputs(ConvCase("dynamic", 1, 8, ((h, w), (w, h))), dtype=torch.float32)
        torch.testing.assert_close(compiled(*inputs.tensors(), h, w), inputs.run())


@pytest.mark.parametrize(("op", "make"), CALLS.values(), ids=CALLS)
def test_second_derivatives_are_refused(op: Any, make: Args) -> None:
    args = make()
    grad_out = torch.ones_like(op(*args)).requires_grad_()
    with pytest.raises(NotImplementedError, match="second derivatives"):
        torch.autograd.grad(op(*args), leaves(args), grad_out, create_graph=True)


def test_autocast_runs_in_16_bits_but_keeps_locations() -> None:
    inputs = make_inputs(REAL[1].classic(), dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = inputs.run()
    by_hand = ms_deform_attn(
        inputs.value.bfloat16(), inputs.case.level_hw, inputs.points, inputs.weights.bfloat16()
    )
    assert got.dtype == torch.bfloat16 and torch.equal(got, by_hand)


def test_autocast_casts_offsets_and_logits() -> None:
    inputs = make_inputs(REAL[1], dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = inputs.run()
    assert torch.equal(got, inputs.map(lambda tensor: tensor.bfloat16()).run())


def test_autocast_gradients_come_back_in_the_dtype_of_the_leaves() -> None:
    inputs = make_inputs(REAL[1], dtype=torch.float32).requires_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = inputs.run()
    grads = torch.autograd.grad(out.float().sum(), inputs.tensors())
    assert all(grad.dtype == torch.float32 for grad in grads)


def test_autocast_patch_embed_keeps_the_residual_stream_in_the_dtype_of_the_table() -> None:
    args = patch_args(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = OPS.patch_embed(*args)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, OPS.patch_embed(*args), rtol=0.02, atol=0.1)


def test_autocast_convolves_in_16_bits() -> None:
    tokens, sizes, weight, bias = conv_args(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = OPS.dwconv_gelu(tokens, sizes, weight, bias)
    by_hand = OPS.dwconv_gelu(tokens.bfloat16(), sizes, weight.bfloat16(), bias.bfloat16())
    assert out.dtype == torch.bfloat16 and torch.equal(out, by_hand)


def test_autocast_leaves_float64_alone() -> None:
    args = grid_args()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = OPS.ms_deform_attn_grid(*args)
    assert out.dtype == torch.float64


@pytest.mark.parametrize(("op", "make"), CALLS.values(), ids=CALLS)
def test_meta_tensors_give_meta_results(op: Any, make: Args) -> None:
    args = [a.to("meta") if isinstance(a, Tensor) else a for a in make(torch.float32)]
    out = op(*args)
    assert out.device.type == "meta" and out.shape == op(*make(torch.float32)).shape


def test_unknown_backend_name_is_a_value_error() -> None:
    with pytest.raises(ValueError, match=r"backend= must be one of .*, got 'fast'"):
        make_inputs(SMALL).run("fast")
    with pytest.raises(ValueError, match="got 'fast'"), vitadapter_fast.backend("fast"):
        pass


def test_named_backend_that_cannot_run_says_why() -> None:
    value = torch.empty(1, 4, 1, 8, device="meta")
    points = torch.empty(1, 1, 1, 1, 1, 2, device="meta")
    from vitadapter_fast.ops._backends import choose
    from vitadapter_fast.ops.ms_deform_attn import BACKENDS
    from vitadapter_fast.ops.ms_deform_attn._call import classic_call

    call = classic_call(value, [2, 2], points, points[..., 0])
    with pytest.raises(BackendUnavailable, match="'cpu' cannot run: it runs on CPU tensors"):
        choose("ms_deform_attn", BACKENDS, call, "cpu")


def test_backend_that_an_op_lacks_is_named_with_those_it_has() -> None:
    from vitadapter_fast.ops._backends import choose
    from vitadapter_fast.ops.patch_embed import cpu, reference

    with pytest.raises(BackendUnavailable, match="has no backend 'cuda', only cpu, reference"):
        choose("patch_embed", (cpu, reference), None, "cuda")


def test_with_block_forces_the_backend_of_forward_and_backward(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from vitadapter_fast.ops.ms_deform_attn import cpu

    def fail(*args: Any) -> None:
        raise AssertionError("the cpu backend ran")

    monkeypatch.setattr(cpu, "forward", fail)
    monkeypatch.setattr(cpu, "backward", fail)
    inputs = make_inputs(SMALL).requires_grad()
    with vitadapter_fast.backend("reference"):
        out = inputs.run()
    torch.autograd.grad(out.sum(), inputs.tensors())  # outside the block, as an optimizer step is
    with pytest.raises(AssertionError, match="the cpu backend ran"):
        inputs.run()


def test_environment_variable_forces_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITADAPTER_BACKEND", "cuda")
    with pytest.raises(BackendUnavailable, match="cuda"):
        make_inputs(SMALL).run()
    assert make_inputs(SMALL).run("reference").isfinite().all()


def test_skipped_backend_logs_its_reason(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from vitadapter_fast.ops.ms_deform_attn import cpu

    monkeypatch.setattr(cpu, "unsupported_reason", lambda call: "it is Sunday")
    with caplog.at_level(logging.DEBUG, logger="vitadapter_fast"):
        make_inputs(SMALL).run()
    assert "skipped cpu: it is Sunday" in caplog.text


BAD_CALLS: dict[str, tuple[dict[str, Any], str]] = {
    "value_rank": ({"value": torch.zeros(1, 4, 1, 8, 1)}, r"value must be \[B, S, M, D\]"),
    "joined_value_of_other_heads": (
        {"value": torch.zeros(1, 4, 7), "locations": torch.zeros(1, 3, 2, 1, 4, 2)},
        r"or \[B, S, M \* D\], got \(1, 4, 7\)",
    ),
    "value_dtype": ({"value": torch.zeros(1, 4, 1, 8, dtype=torch.long)}, "must be a floating"),
    "tokens": ({"level_hw": [(2, 3)]}, "as many pixels as value has tokens, 4"),
    "levels": ({"level_hw": [(1, 2), (1, 2)]}, r"locations must be \[B, Q, M, 2, P, 2\]"),
    "no_levels": ({"level_hw": []}, "pairs of positive sizes"),
    "negative_size": ({"level_hw": [(-2, -2)]}, "pairs of positive sizes"),
    "heads": (
        {"locations": torch.zeros(1, 3, 2, 1, 2, 2), "weights": torch.zeros(1, 3, 2, 1, 2)},
        r"locations must begin \[1, Q, 1\]",
    ),
    "weights_shape": (
        {"weights": torch.zeros(1, 3, 1, 1, 3)},
        r"weights must be \(1, 3, 1, 1, 2\)",
    ),
    "half_locations": (
        {"locations": torch.zeros(1, 3, 1, 1, 2, 2, dtype=torch.half)},
        "locations must be torch.float32 with a torch.float32 value",
    ),
    "double_weights": (
        {"weights": torch.zeros(1, 3, 1, 1, 2, dtype=torch.double)},
        "weights must be torch.float32",
    ),
    "device": ({"weights": torch.zeros(1, 3, 1, 1, 2, device="meta")}, "must be on cpu with value"),
}


@pytest.mark.parametrize(("change", "message"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_bad_attention_call_is_a_value_error(change: dict[str, Any], message: str) -> None:
    call: dict[str, Any] = {
        "value": torch.zeros(1, 4, 1, 8),
        "level_hw": [(2, 2)],
        "locations": torch.zeros(1, 3, 1, 1, 2, 2),
        "weights": torch.zeros(1, 3, 1, 1, 2),
    }
    ms_deform_attn(**call)
    with pytest.raises(ValueError, match=f"^ms_deform_attn: .*{message}"):
        ms_deform_attn(**(call | change))


@pytest.mark.parametrize("query_hw", [[], [(2, 2)], [(3, 1), (1, 1)], [(3, -1)]])
def test_bad_query_grid_is_a_value_error(query_hw: Any) -> None:
    with pytest.raises(ValueError, match=r"^ms_deform_attn_grid: query_hw"):
        ms_deform_attn_grid(
            torch.zeros(1, 4, 1, 8),
            [(2, 2)],
            query_hw,
            torch.zeros(1, 3, 1, 1, 2, 2),
            torch.zeros(1, 3, 1, 1, 2),
        )
