# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""What people do to a layer of a model that is not theirs: each touch, and how it shows."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from vitadapter_fast.model.rope import RotaryEmbedding

# A touch changes a module of a model, by name, and returns how often the touch was seen so far.
Seen = Callable[[], int]
Touch = Callable[[nn.Module, str], Seen]


class Low(nn.Module):
    """A low-rank adapter beside a layer, as peft puts one in its place."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        weight = base.weight.flatten(1)
        self.down = nn.Parameter(torch.randn(2, weight.shape[1], dtype=weight.dtype))
        self.up = nn.Parameter(torch.randn(weight.shape[0], 2, dtype=weight.dtype))
        self.seen = 0

    def change(self) -> Tensor:
        """Return what is added to the weight."""
        return (self.up @ self.down).view_as(self.base.weight) / 16

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        base, change = self.base, self.change()
        if isinstance(base, nn.Linear):
            return base(x) + F.linear(x, change)
        if isinstance(base, nn.ConvTranspose2d):
            return base(x) + F.conv_transpose2d(x, change, None, base.stride)
        more = F.conv2d(x, change, None, base.stride, base.padding, base.dilation, base.groups)
        return base(x) + more


class AlwaysDropout(nn.Dropout):
    """Monte Carlo dropout: active in eval mode as well."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, training=True)


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, module)


def _counting() -> tuple[list[int], Seen]:
    calls: list[int] = []
    return calls, lambda: len(calls)


def own_forward(model: nn.Module, name: str) -> Seen:
    module, (calls, seen) = model.get_submodule(name), _counting()
    before = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return _scaled(before(*args, **kwargs))

    module.forward = forward
    return seen


def _scaled(out: Any) -> Any:
    return tuple(map(_scaled, out)) if isinstance(out, tuple) else out * 1.25


def forward_hook(model: nn.Module, name: str) -> Seen:
    calls, seen = _counting()

    def hook(module: nn.Module, args: Any, out: Any) -> Any:
        calls.append(1)
        return _scaled(out)

    model.get_submodule(name).register_forward_hook(hook)
    return seen


def forward_pre_hook(model: nn.Module, name: str) -> Seen:
    calls, seen = _counting()

    def hook(module: nn.Module, args: Any) -> Any:
        calls.append(1)
        return (_scaled(args[0]), *args[1:])

    model.get_submodule(name).register_forward_pre_hook(hook)
    return seen


def backward_hook(model: nn.Module, name: str) -> Seen:
    calls, seen = _counting()
    model.get_submodule(name).register_full_backward_hook(lambda *_: calls.append(1))
    return seen


def backward_pre_hook(model: nn.Module, name: str) -> Seen:
    calls, seen = _counting()
    model.get_submodule(name).register_full_backward_pre_hook(lambda *_: calls.append(1))
    return seen


def subclass(model: nn.Module, name: str) -> Seen:
    module, (calls, seen) = model.get_submodule(name), _counting()
    kind: Any = type(module)

    class Sub(kind):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            return _scaled(super().forward(*args, **kwargs))

    module.__class__ = Sub
    return seen


def low_rank(model: nn.Module, name: str) -> Seen:
    adapter = Low(model.get_submodule(name))
    replace(model, name, adapter)
    return lambda: adapter.seen


class Weights:
    """How many of a touched module's own parameters have a gradient."""

    def __init__(self, module: nn.Module) -> None:
        self.leaves = list(module.parameters())

    def __call__(self) -> int:
        return sum(leaf.grad is not None for leaf in self.leaves)


class Result:
    """Nothing counts: that a touch is seen shows in the maps alone."""

    def __call__(self) -> int:
        return 1


def _through(make: Callable[[nn.Module], object]) -> Touch:
    """A touch that makes the weight anew for each call: seen where the new one gets a gradient."""

    def touch(model: nn.Module, name: str) -> Seen:
        module = model.get_submodule(name)
        make(module)
        return Weights(module)

    return touch


def offloaded(model: nn.Module, name: str) -> Seen:
    """As accelerate: weights are elsewhere, and come for the time of a call."""
    module, (calls, seen) = model.get_submodule(name), _counting()
    kept = dict(module._parameters)
    elsewhere = {
        key: None if each is None else nn.Parameter(each.detach().to("meta"))
        for key, each in kept.items()
    }
    before = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        module._parameters.update(kept)
        try:
            return before(*args, **kwargs)
        finally:
            module._parameters.update(elsewhere)

    module.forward = forward
    module._parameters.update(elsewhere)
    return seen


def _in_its_place(kind: type[nn.Module]) -> Touch:
    """A touch that nobody counts: no hook, which would be a touch by itself."""

    def touch(model: nn.Module, name: str) -> Seen:
        replace(model, name, kind().train(model.get_submodule(name).training))
        return Result()

    return touch


TOUCHES: dict[str, Touch] = {
    "forward of its own": own_forward,
    "forward hook": forward_hook,
    "forward pre-hook": forward_pre_hook,
    "backward hook": backward_hook,
    "backward pre-hook": backward_pre_hook,
    "subclass": subclass,
    "low-rank adapter": low_rank,
    "pruning": _through(lambda module: prune.l1_unstructured(module, "weight", 0.3)),
    "spectral norm, old": _through(spectral_norm),
    "spectral norm": _through(parametrizations.spectral_norm),
    "weight norm, old": _through(weight_norm),
    "weight norm": _through(parametrizations.weight_norm),
    "offloading": offloaded,
    "Identity": _in_its_place(nn.Identity),
    "Dropout": _in_its_place(nn.Dropout),
    "dropout that is always on": _in_its_place(AlwaysDropout),
}
_MATRICES = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)


def can_take(module: nn.Module, touch: str) -> bool:
    """Return whether a touch has a meaning for a leaf module."""
    if isinstance(module, RotaryEmbedding):  # it takes sizes first, and has no gradient
        return touch in ("forward of its own", "forward hook", "subclass", "offloading")
    if touch in ("Identity", "Dropout", "dropout that is always on"):
        is_square = isinstance(module, nn.Linear) and module.in_features == module.out_features
        return is_square or not isinstance(module, (*_MATRICES, nn.MaxPool2d))
    if touch == "low-rank adapter":
        return isinstance(module, _MATRICES)
    if "norm" in touch or touch == "pruning":
        return isinstance(module, _MATRICES)
    return True
