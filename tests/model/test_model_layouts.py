# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Parameters and arguments that lie in memory in any way, and batches without an image."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vitadapter_fast import ViTAdapter, info
from vitadapter_fast.fused.form import form_of
from vitadapter_fast.fused.linear import norm_linear, residual_linear
from vitadapter_fast.fused.pyramid import _LargestSum
from vitadapter_fast.native import gemm, half_linear, token_rows

sys.path.insert(0, str(Path(__file__).parents[1] / "ops"))
from examples import LAYOUTS  # noqa: E402

Build = Callable[..., ViTAdapter]


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def _norm_linear(x: Tensor, weight: Tensor, bias: Tensor, *layer: Tensor) -> Tensor:
    norm, linear = nn.LayerNorm(x.shape[-1]), nn.Linear(x.shape[-1], layer[0].shape[0])
    _give(norm, weight, bias)
    _give(linear, *layer)
    return norm_linear(form_of(x, weight), x, norm, linear)[0]


def _residual_linear(
    activation: str, x: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor
) -> Tensor:
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    _give(linear, weight, bias)
    form = form_of(x, weight)
    return residual_linear(form, x, hidden, linear, activation=activation, gamma=gamma)


def _give(layer: nn.Module, weight: Tensor, bias: Tensor) -> None:
    """Put tensors into a layer as they lie in memory; they stay leaves of the graph."""
    del layer.weight, layer.bias
    layer.weight, layer.bias = weight, bias


# Whatever calls a function of torch that is not public, or a kernel of ours by address: by way of
# its caller, with every argument.
CALLS: dict[str, tuple[Callable[..., Tensor], list[tuple[int, ...]]]] = {
    "oneDNN's product": (gemm.linear, [(40, 24), (16, 24), (16,)]),
    "oneDNN's product and a sum": (
        lambda rows, weight, bias, plus: gemm.linear(rows, weight, bias, plus=plus.clone()),
        [(40, 24), (16, 24), (16,), (40, 16)],
    ),
    "gradient of a weight": (gemm.weight_gradient, [(40, 16), (40, 24)]),
    "norm and linear": (_norm_linear, [(2, 20, 24), (24,), (24,), (16, 24), (16,)]),
    **{
        f"residual and {activation}": (
            lambda *args, activation=activation: _residual_linear(activation, *args),
            [(2, 20, 16), (2, 20, width), (16, 24), (16,), (16,)],
        )
        for activation, width in (("none", 24), ("gelu", 24), ("swiglu", 48))
    },
    "the largest map": (
        lambda at_4, *others: _LargestSum.apply(at_4.clone(), *others, False),
        [(2, 16, 8, 12), (2, 16, 4, 6), (16, 16, 2, 2), (16,), (2, 16, 2, 3)],
    ),
}
# Maps come channels last: that is the layout of everything in the model.
MAPS = {"the largest map": (0, 1, 4)}


def test_numbers_of_the_other_sign_are_told_where_they_lie_densely() -> None:
    call = {"rows": random(40, 24), "weight": random(16, 24), "plus": random(40, 16)}
    dense = half_linear.linear(**call, dtype=torch.float32) if half_linear.has_products() else None
    for name, tensor in call.items():
        assert token_rows.gelu(torch._neg_view(tensor)).clone().equal(token_rows.gelu(-tensor))
        if dense is not None:
            negated = call | {name: torch._neg_view(-tensor)}
            assert half_linear.linear(**negated, dtype=torch.float32).equal(dense)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CALLS)
def test_every_argument_may_lie_in_any_way(name: str, layout: str) -> None:
    run, shapes = CALLS[name]
    maps = MAPS.get(name, ())
    for index in range(len(shapes)):
        if layout != "dense" and index in maps:
            continue
        given = [random(*shape) for shape in shapes]
        for each in maps:
            given[each] = given[each].contiguous(memory_format=torch.channels_last)
        given[index] = LAYOUTS[layout](given[index])
        truth = [each.double().contiguous() for each in given]
        for each in maps:
            truth[each] = truth[each].contiguous(memory_format=torch.channels_last)
        has_gradients = name not in ("oneDNN's product", "oneDNN's product and a sum") and (
            "gradient" not in name
        )
        results = [_with_gradients(run, args, has_gradients) for args in (given, truth)]
        for got, wanted in zip(*results, strict=True):
            torch.testing.assert_close(got, wanted.float(), rtol=1e-4, atol=1e-4)


def _with_gradients(run: Callable[..., Tensor], args: list[Tensor], has: bool) -> list[Tensor]:
    if not has:
        return [run(*args)]
    leaves = [each.detach().requires_grad_() for each in args]
    assert all(leaf.stride() == arg.stride() for leaf, arg in zip(leaves, args, strict=True))
    out = run(*leaves)
    cotangent = random(*out.shape).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, cotangent)]


def _every_tensor(model: nn.Module) -> Iterator[Tensor]:
    yield from (each for each in model.parameters())
    yield from (each for each in model.buffers() if each.is_floating_point())


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize("layout", ["offset", "reversed", "every_second"])
def test_a_model_may_keep_its_parameters_in_any_way(
    layout: str, training: bool, tiny: Build, image: Tensor
) -> None:
    """As assign=True, functional_call and flat parameter buffers leave them."""
    found = []
    for change in (LAYOUTS[layout], LAYOUTS["dense"]):
        model = tiny(norm="BN").train(training)
        for each in _every_tensor(model):
            each.data = change(each.data)
        maps = model(image)
        torch.autograd.backward(maps, [random(*each.shape) for each in maps])
        found.append([*maps, *(p.grad for p in model.parameters() if p.grad is not None)])
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("op", sorted(set(info.probes()) - {"batch_norm"}))
def test_every_operator_takes_no_image_forward_and_backward(op: str) -> None:
    probe = info.probes()[op]
    count = {"int8_linear": 2, "ms_deform_attn": 3, "ms_deform_attn_grid": 3}.get(op, 1)
    tensors = [
        (each[:0] if index < count else each).float().requires_grad_()
        for index, each in enumerate(probe.tensors)
    ]
    for backend in ("cpu", "reference"):
        out = probe.run(backend, *tensors)
        assert out.shape[0] == 0
        grads = torch.autograd.grad(out, tensors, torch.empty_like(out))
        for grad, tensor in zip(grads, tensors, strict=True):
            assert grad.shape == tensor.shape and not grad.any()


def test_a_batch_norm_of_no_token_is_refused() -> None:
    """It has no mean."""
    probe = info.probes()["batch_norm"]
    tokens, *parameters = probe.tensors
    with pytest.raises(ValueError, match="with a token and a channel"):
        probe.run("cpu", tokens[:0], *parameters)


@pytest.mark.parametrize("case", [{}, {"vit_features": "stages"}, {"norm": "GN"}], ids=str)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize("has_hooks", [False, True], ids=["plain", "hooked"])
def test_a_batch_without_an_image_has_zeros_as_gradients(
    case: dict[str, Any], training: bool, has_hooks: bool, tiny: Build
) -> None:
    model = tiny(**case).train(training)
    if has_hooks:
        for module in model.modules():
            module.register_forward_hook(lambda *_: None)
    maps = model(torch.zeros(0, 3, 64, 96))
    assert [each.shape[0] for each in maps] == [0] * 4
    sum(each.sum() for each in maps).backward()
    wanted = tiny(**case).train(training)
    sum(each.sum() for each in wanted(torch.zeros(1, 3, 64, 96))).backward()
    for (name, parameter), other in zip(model.named_parameters(), wanted.parameters(), strict=True):
        assert (parameter.grad is None) == (other.grad is None), name
        assert parameter.grad is None or not parameter.grad.any(), name
