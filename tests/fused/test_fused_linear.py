# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Linear layers with the norm before and the residual after them, against torch's own layers."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import WINDOWED
from torch import Tensor, nn

from vitadapter_fast import ViTAdapter
from vitadapter_fast.fused import linear
from vitadapter_fast.fused.form import dtype_reason, form_of
from vitadapter_fast.model.grid import grids_of
from vitadapter_fast.native import gemm


def norm_linear(x: Tensor, norm: nn.LayerNorm, *layers: nn.Linear) -> tuple[Tensor, ...]:
    assert dtype_reason(x, norm.weight) is None
    return linear.norm_linear(form_of(x, norm.weight), x, norm, *layers)


def residual_linear(x: Tensor, hidden: Tensor, layer: nn.Linear, **options: Any) -> Tensor:
    assert dtype_reason(x, layer.weight) is None
    return linear.residual_linear(form_of(x, layer.weight), x, hidden, layer, **options)


ACTIVATIONS = ("none", "gelu", "swiglu")


def randomized(module: nn.Module, dtype: torch.dtype = torch.float64) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module.to(dtype)


def activated(hidden: Tensor, activation: str) -> Tensor:
    if activation == "swiglu":
        gate, value = hidden.chunk(2, -1)
        return F.silu(gate) * value
    return F.gelu(hidden) if activation == "gelu" else hidden


def gradients(out: Tensor, cotangent: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(out, inputs, cotangent))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(2, 5, 6), (1, 1, 6), (3, 300, 40)])
@pytest.mark.parametrize("sizes", [(7,), (4, 9)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_norm_linear_is_norm_then_layers(
    dtype: torch.dtype, shape: tuple[int, ...], sizes: tuple[int, ...], has_bias: bool
) -> None:
    torch.manual_seed(0)
    norm = randomized(nn.LayerNorm(shape[2], eps=1e-6), dtype)
    layers = [randomized(nn.Linear(shape[2], size, bias=has_bias), dtype) for size in sizes]
    x = torch.randn(shape, dtype=dtype, requires_grad=True)
    *outs, _ = norm_linear(x, norm, *layers)
    out, wanted = (torch.cat(parts, -1) for parts in (outs, [layer(norm(x)) for layer in layers]))
    torch.testing.assert_close(out, wanted)
    made_by: Any = outs[0].grad_fn
    if len(layers) > 1:
        made_by = made_by.next_functions[0][0]  # before the split
    assert "_NormLinear" in type(made_by).__name__
    inputs = [x, *norm.parameters(), *(p for layer in layers for p in layer.parameters())]
    cotangent = torch.randn_like(out)
    for got, right in zip(
        gradients(out, cotangent, inputs), gradients(wanted, cotangent, inputs), strict=True
    ):
        torch.testing.assert_close(
            got, right, rtol=1e-4 if dtype == torch.float32 else 1e-9, atol=1e-4
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("scaled", ["", "gamma", "kept", "gamma and kept"])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("batch", [1, 2])
def test_residual_linear_is_the_sum(
    dtype: torch.dtype, activation: str, scaled: str, has_bias: bool, batch: int
) -> None:
    torch.manual_seed(0)
    layer = randomized(nn.Linear(12, 40, bias=has_bias), dtype)
    x = torch.randn(batch, 300, 40, dtype=dtype, requires_grad=True)
    wide = 24 if activation == "swiglu" else 12
    hidden = torch.randn(batch, 300, wide, dtype=dtype, requires_grad=True)
    gamma = torch.randn(40, dtype=dtype, requires_grad=True) if "gamma" in scaled else None
    kept = (
        torch.tensor([4.0, 0.0], dtype=dtype)[:batch].view(-1, 1, 1) if "kept" in scaled else None
    )
    out = residual_linear(x, hidden, layer, activation=activation, gamma=gamma, kept=kept)
    branch = layer(activated(hidden, activation))
    wanted = x + (1 if gamma is None else gamma) * (1 if kept is None else kept) * branch
    torch.testing.assert_close(out, wanted)
    assert "_ResidualLinear" in type(out.grad_fn).__name__
    inputs = [x, hidden, *layer.parameters(), *([] if gamma is None else [gamma])]
    cotangent = torch.randn_like(out)
    for got, right in zip(
        gradients(out, cotangent, inputs), gradients(wanted, cotangent, inputs), strict=True
    ):
        torch.testing.assert_close(
            got, right, rtol=1e-4 if dtype == torch.float32 else 1e-9, atol=1e-3
        )


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradcheck(activation: str) -> None:
    torch.manual_seed(0)
    norm, layer = randomized(nn.LayerNorm(4)), randomized(nn.Linear(4, 6))
    back = randomized(nn.Linear(3 if activation == "swiglu" else 6, 4))
    gamma = torch.randn(4, dtype=torch.float64, requires_grad=True)
    kept = torch.tensor([2.0], dtype=torch.float64).view(1, 1, 1)

    def branch(x: Tensor, gamma: Tensor, *_: Tensor) -> Tensor:
        hidden, x = norm_linear(x, norm, layer)
        return residual_linear(x, hidden, back, activation=activation, gamma=gamma, kept=kept)

    x = torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True)
    parameters = [*norm.parameters(), *layer.parameters(), *back.parameters()]
    assert torch.autograd.gradcheck(branch, (x, gamma, *parameters))


def test_cotangents_and_inputs_of_any_strides() -> None:
    norm, layer = randomized(nn.LayerNorm(8), torch.float32), nn.Linear(8, 8)
    x = torch.randn(2, 8, 9).transpose(1, 2).requires_grad_()
    hidden = torch.randn(2, 9, 16)[..., ::2].requires_grad_()
    out = residual_linear(x, hidden, layer) + norm_linear(x, norm, layer)[0]
    wanted = x + layer(hidden) + layer(norm(x))
    for cotangent in (torch.ones(()).expand_as(out), torch.randn(9, 2, 8).transpose(0, 1)):
        inputs = [x, hidden, layer.weight, layer.bias, norm.weight]
        got = torch.autograd.grad(out, inputs, cotangent, retain_graph=True)
        right = torch.autograd.grad(wanted, inputs, cotangent, retain_graph=True)
        for a, b in zip(got, right, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_gradients_that_nobody_needs_are_not_made() -> None:
    norm, layer = nn.LayerNorm(8), nn.Linear(8, 8)
    layer.requires_grad_(False)
    x = torch.randn(1, 4, 8, requires_grad=True)
    hidden, _ = norm_linear(x, norm, layer)
    residual_linear(x.detach(), hidden, layer, activation="gelu").sum().backward()
    assert x.grad is not None and layer.weight.grad is None
    assert norm.weight.grad is not None


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_autocast_is_as_close_as_that_of_torch(low: torch.dtype, activation: str) -> None:
    torch.manual_seed(0)
    norm, layer = nn.LayerNorm(64), nn.Linear(64, 128)
    back = nn.Linear(64 if activation == "swiglu" else 128, 64)
    gamma = torch.rand(64, requires_grad=True)
    x = torch.randn(2, 50, 64, requires_grad=True)

    def ours(x: Tensor) -> Tensor:
        hidden, x = norm_linear(x, norm, layer)
        return residual_linear(x, hidden, back, activation=activation, gamma=gamma)

    def theirs(x: Tensor) -> Tensor:
        return x + gamma * back(activated(layer(norm(x)), activation))

    inputs = [x, gamma, *norm.parameters(), *layer.parameters(), *back.parameters()]
    cotangent = torch.randn_like(x)

    def run(branch: Any) -> list[Tensor]:
        out = branch(x)
        assert out.dtype == torch.float32
        return [out, *gradients(out, cotangent, inputs)]

    truth = run(theirs)
    with torch.autocast("cpu", low):
        got, peer = run(ours), run(theirs)
    for a, b, right in zip(got, peer, truth, strict=True):
        assert a.dtype == right.dtype
        error, allowed = (a - right).abs().max(), (b - right).abs().max()
        assert error <= 2 * allowed + 4 * torch.finfo(low).eps * right.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_modules(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    norm, layer = nn.LayerNorm(32), nn.Linear(32, 32)
    gamma, x = torch.rand(32), torch.randn(1, 40, 32)
    wanted = x + gamma * layer(norm(x))
    norm, layer, gamma, x = norm.to(dtype), layer.to(dtype), gamma.to(dtype), x.to(dtype)
    hidden, x = norm_linear(x, norm, layer)
    out = residual_linear(x, hidden, nn.Linear(32, 32).to(dtype), gamma=gamma)
    assert out.dtype == dtype
    out = residual_linear(x, norm(x), layer, gamma=gamma)
    torch.testing.assert_close(out.float(), wanted, rtol=0, atol=8 * torch.finfo(dtype).eps)


def test_layers_with_and_without_bias_are_computed_one_by_one() -> None:
    norm, layers = nn.LayerNorm(8), (nn.Linear(8, 8), nn.Linear(8, 4, bias=False))
    x = torch.randn(1, 4, 8)
    for got, layer in zip(norm_linear(x, norm, *layers), layers, strict=False):
        torch.testing.assert_close(got, layer(norm(x)))


@pytest.mark.parametrize("wide", [torch.float64, torch.bfloat16])
def test_tokens_of_another_dtype_have_a_reason(wide: torch.dtype) -> None:
    reason = dtype_reason(torch.randn(1, 4, 8, dtype=wide), nn.Linear(8, 8).weight)
    assert reason == f"the tokens are {wide} and the weights torch.float32"


def test_second_derivatives_are_refused() -> None:
    x = torch.randn(1, 4, 8, requires_grad=True)
    out = residual_linear(x, x, nn.Linear(8, 8))
    (grad,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_only_what_the_activation_reads_is_kept() -> None:
    norm, layer, back = nn.LayerNorm(8), nn.Linear(8, 32), nn.Linear(32, 8)
    x = torch.randn(1, 100, 8, requires_grad=True)
    gamma = torch.ones(8, requires_grad=True)
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden, x = norm_linear(x, norm, layer)
        residual_linear(x, hidden, back, activation="gelu", gamma=gamma)
    tokens, statistics, preactivation = 800, 100, 3200
    large = sorted(count for count in kept if count >= 100 and count not in (256,))
    assert large == [statistics, statistics, tokens, preactivation]


@pytest.fixture
def all_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gemm, "_PIECE", 3)
    monkeypatch.setattr(gemm, "_HEAP_BYTES", 3 * 4 * 1000)


def test_maps_of_large_images_are_the_same(request: pytest.FixtureRequest) -> None:
    model, image = ViTAdapter(**WINDOWED).eval(), torch.rand(2, 3, 160, 96)
    with torch.no_grad():
        wanted = model(image)
        request.getfixturevalue("all_in_pieces")
        got = model(image)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("all_in_pieces")
@pytest.mark.parametrize("seen", ["attn", "ffn", "everything", "nothing"])
def test_only_what_nobody_sees_is_overwritten(seen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    extractor = ViTAdapter(**WINDOWED).eval().interactions[0].extractor
    grids = grids_of(torch.empty(1, 3, 160, 96))
    x, c = torch.rand(1, 60, 32), torch.rand(1, 315, 32)
    kept: list[tuple[Tensor, Tensor]] = []
    asked: list[bool] = []
    run = gemm.linear

    def linear(*args: Any, overwrites: bool = False, **kwargs: Any) -> Tensor:
        asked.append(overwrites)
        return run(*args, overwrites=overwrites, **kwargs)

    def keep(module: nn.Module, args: Any, *out: Any) -> None:
        kept.extend((tensor, tensor.clone()) for tensor in (*args, *out) if torch.is_tensor(tensor))

    monkeypatch.setattr(gemm, "linear", linear)
    handle = None
    if seen == "everything":
        handle = nn.modules.module.register_module_forward_hook(keep)
    elif seen == "attn":
        extractor.attn.register_forward_hook(keep)
    elif seen == "ffn":
        extractor.ffn.register_forward_pre_hook(keep)
    before = c.clone()
    with torch.no_grad():
        extractor(c, x, grids)
    if handle is not None:
        handle.remove()
    assert torch.equal(c, before)
    assert all(torch.equal(tensor, copy) for tensor, copy in kept)
    assert (seen == "nothing") == (not kept) == (True in asked)


def test_gradients_behind_a_small_gamma_survive_float16() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(64, 64)
    x, hidden = torch.randn(1, 50, 64), torch.randn(1, 50, 64, requires_grad=True)
    gamma = torch.full((64,), 1e-5, requires_grad=True)
    inputs = [hidden, layer.weight, layer.bias, gamma]

    def gradients_in(dtype: torch.dtype) -> list[Tensor]:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            out = residual_linear(x, hidden, layer, gamma=gamma)
        scale = 2.0**14  # as a GradScaler's
        grads = torch.autograd.grad((scale * out).sum(), inputs)
        return [grad.float() / scale for grad in grads]

    wanted = gradients_in(torch.float32)
    for got, right in zip(gradients_in(torch.float16), wanted, strict=True):
        assert torch.dist(got, right) < 2e-3 * right.norm()
