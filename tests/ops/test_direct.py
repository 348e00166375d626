# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Calls past torch's dispatcher: equal to those through it, and not made where somebody listens."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from importlib import import_module
from typing import Any

import pytest
import torch
from test_framework import (
    classic_args,
    conv_args,
    grid_args,
    int8_args,
    leaves,
    patch_args,
    rope_args,
    with_leaves,
)
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from vitadapter_fast.ops import _direct
from vitadapter_fast.ops._direct import Operator

Args = tuple[Any, ...]


def windows_args(dtype: torch.dtype = torch.float64) -> Args:
    qkv = torch.randn(2, 12, 3, 2, 8, generator=torch.Generator().manual_seed(0))
    return qkv.to(dtype).requires_grad_(), [3, 4], 2


def norm_args(dtype: torch.dtype = torch.float64) -> Args:
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 6, 5), (5,), (5,)
    leaves = [torch.randn(s, generator=generator).to(dtype).requires_grad_() for s in shapes]
    return *leaves, 1e-5, True, False


MAKERS: dict[str, Callable[..., Args]] = {
    "batch_norm": norm_args,
    "dwconv_gelu": conv_args,
    "int8_linear": int8_args,
    "ms_deform_attn": classic_args,
    "ms_deform_attn_grid": grid_args,
    "patch_embed": patch_args,
    "rope": rope_args,
    "window_attention": windows_args,
}
NAMES = {"ms_deform_attn": "_classic", "ms_deform_attn_grid": "_grid"}


def operator(name: str) -> Operator:
    module = import_module(f"vitadapter_fast.ops.{name.removesuffix('_grid')}")
    found = getattr(module, NAMES.get(name, "_forward"))
    assert isinstance(found, Operator)
    return found


every_operator = pytest.mark.parametrize("name", MAKERS)


def test_every_operator_is_here() -> None:
    packets = vars(torch.ops.vitadapter_fast).values()
    names = {packet.__name__ for packet in packets if hasattr(packet, "default")}
    assert {name.removesuffix("_backward") for name in names} == set(MAKERS)


def tensors(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def outputs_and_gradients(call: Callable[..., Any], args: Args) -> list[Tensor]:
    outs = tensors(call(*args))
    if not outs[0].requires_grad:
        return outs
    generator = torch.Generator().manual_seed(1)
    cotangent = torch.randn(outs[0].shape, generator=generator).to(outs[0].dtype)
    return [*outs, *torch.autograd.grad(outs[0], leaves(args), cotangent)]


CONTEXTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "recording": nullcontext,
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


@every_operator
@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_both_ways_give_the_same(
    name: str, context: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    op = operator(name)
    with CONTEXTS[context]():
        wanted = outputs_and_gradients(op.overload, MAKERS[name](dtype))
        monkeypatch.setattr(op, "overload", None)  # a call of it fails
        got = outputs_and_gradients(op, MAKERS[name](dtype))
    assert [part.dtype for part in got] == [part.dtype for part in wanted]
    assert all(map(torch.equal, got, wanted)) and len(got) == len(wanted)


@every_operator
def test_gradients_of_some_inputs_alone(name: str) -> None:
    op, count = operator(name), len(leaves(MAKERS[name]()))
    for kept in range(count):
        results = []
        for call in (op, op.overload):
            args = MAKERS[name](torch.float32)
            for index, leaf in enumerate(leaves(args)):
                leaf.requires_grad_(index == kept)
            results.append(outputs_and_gradients(call, args))
        assert len(results[0]) == len(results[1]) and all(map(torch.equal, *results))


@pytest.mark.parametrize("name", sorted(set(MAKERS) - {"int8_linear"}))  # which rounds
def test_gradcheck(name: str) -> None:
    op, args = operator(name), MAKERS[name]()

    def run(*inputs: Tensor) -> Tensor:
        return tensors(op(*with_leaves(args, inputs)))[0]

    assert torch.autograd.gradcheck(run, leaves(args))


@every_operator
@pytest.mark.parametrize("has_graph", [True, False], ids=["cotangent", "constant"])
@pytest.mark.parametrize("way", ["direct", "dispatcher"])
def test_second_derivatives_are_refused(name: str, way: str, has_graph: bool) -> None:
    args, op = MAKERS[name](), operator(name)
    out = tensors((op if way == "direct" else op.overload)(*args))[0]
    cotangent = torch.ones_like(out).requires_grad_(has_graph)
    with pytest.raises(NotImplementedError, match=f"{name}.*second derivatives"):
        torch.autograd.grad(out, args[0], cotangent, create_graph=True)


def test_autocast_is_on_again_after_the_call_and_after_an_error() -> None:
    op, args = operator("dwconv_gelu"), conv_args(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        op(*args)
        assert torch.is_autocast_enabled("cpu")
        with pytest.raises(ValueError, match="weight must be"):
            op(args[0], args[1], args[2][:1], args[3])
        assert torch.is_autocast_enabled("cpu")


class Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return op(*args, **(kwargs or {}))


class Function(TorchFunctionMode):
    def __torch_function__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return op(*args, **(kwargs or {}))


class Subclass(Tensor):
    """A tensor that is more than memory."""


def negative(args: Args) -> Args:
    """Return the arguments with the first a view that reads as its negative."""
    return torch._neg_view(args[0].detach()), *args[1:]


def subclass(args: Args) -> Args:
    return args[0].detach().as_subclass(Subclass), *args[1:]


def meta(args: Args) -> Args:
    return tuple(arg.to("meta") if isinstance(arg, Tensor) else arg for arg in args)


Run = Callable[[Operator, Args], object]


def under(context: Callable[[], AbstractContextManager[Any]], change: Any = None) -> Run:
    def run(op: Operator, args: Args) -> object:
        args = args if change is None else change(args)
        with context():
            return op(*args)

    return run


def in_fake_mode(op: Operator, args: Args) -> object:
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(arg) if isinstance(arg, Tensor) else arg for arg in args]
        return op(*fakes)


def traced_by_fx(op: Operator, args: Args) -> object:
    def run(first: Tensor) -> Any:
        return op(first, *args[1:])

    graph = make_fx(run)(args[0].detach())
    assert "vitadapter_fast" in graph.code
    return graph


def mapped(op: Operator, args: Args) -> object:
    """Transform by a function of torch.func, which may have no rule for the operator."""
    with suppress(RuntimeError):
        torch.func.vmap(lambda first: op(first, *args[1:]))(args[0].detach()[None])
    return None


def profiled(op: Operator, args: Args) -> object:
    with torch.profiler.profile() as profile:
        op(*args)
    assert any("vitadapter_fast" in event.key for event in profile.key_averages())
    return None


LISTENERS: dict[str, Run] = {
    "dispatch mode": under(Dispatch),
    "function mode": under(Function),
    "default device": under(lambda: torch.device("meta")),
    "subclass": under(nullcontext, subclass),
    "negative view": under(nullcontext, negative),
    "meta": under(nullcontext, meta),
    "fake": in_fake_mode,
    "make_fx": traced_by_fx,
    "transform": mapped,
    "profiler": profiled,
}


@every_operator
@pytest.mark.parametrize("listener", LISTENERS)
def test_who_listens_hears_the_operator(
    name: str, listener: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shortcut(*args: Any, **options: Any) -> None:
        raise AssertionError("nobody heard the operator")

    op = operator(name)
    monkeypatch.setattr(op, "_call", shortcut)
    with pytest.raises(AssertionError, match="nobody heard"):
        op(*MAKERS[name](torch.float32))
    LISTENERS[listener](op, MAKERS[name](torch.float32))


def test_negative_view_is_read_as_such() -> None:
    args = conv_args(torch.float32)
    wanted = operator("dwconv_gelu")(-args[0], *args[1:])
    torch.testing.assert_close(operator("dwconv_gelu")(*negative(args)), wanted)


@pytest.fixture
def silent_torch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A torch without the private functions that tell who listens."""
    private = torch._C

    class Without:
        def __getattr__(self, name: str) -> Any:
            if name == "_dispatch_keys":
                raise AttributeError(name)
            return getattr(private, name)

    monkeypatch.setattr(_direct, "_C", Without())
    monkeypatch.setattr(_direct, "_PLAIN_KEYS", _direct._plain_keys())
    yield


@pytest.mark.usefixtures("silent_torch")
def test_torch_that_does_not_tell_gets_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    op, args = operator("dwconv_gelu"), conv_args(torch.float32)
    wanted = op.overload(*args)
    monkeypatch.setattr(op, "_call", None)
    assert torch.equal(op(*args), wanted)
