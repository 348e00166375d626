# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A box of the model in; None out where its fused form runs, or the sentence why it runs plain.

A fused form reads the weights of layers and does not call them. So whatever somebody did to one of
them, all modules of its box are called: hooks, pruning, parametrizations, low-rank adapters, a
``forward`` of the instance's own, another class, offloading, sharding.
"""

import logging
from collections.abc import Callable
from types import ModuleType
from typing import TypeVar

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import Parameter

from ..ops._backends import requested
from .group_norm import GroupNorm
from .int8_linear import Int8Linear

_log = logging.getLogger("vitadapter_fast")
_Module = TypeVar("_Module", bound=nn.Module)

# What weights may be: fake ones count what a model costs.
_WEIGHTS = (Parameter, FakeTensor)
LINEARS = (nn.Linear, Int8Linear)
NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, GroupNorm)
# Layers whose arithmetic is done here, and the parameters that it needs.
_LAYERS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Linear: ("weight",),
    Int8Linear: (),  # its weights are buffers
    nn.Conv2d: ("weight",),
    nn.ConvTranspose2d: ("weight",),
    nn.LayerNorm: ("weight", "bias"),
    **dict.fromkeys(NORMS, ("weight", "bias")),
    nn.ReLU: (),
    nn.MaxPool2d: (),
    nn.Dropout: (),
}
# The model's classes, and torch's lists: what each part has to be, where that is told.
_PARTS: dict[type[nn.Module], dict[str, tuple[type[nn.Module], ...]]] = {
    nn.Sequential: {},
    nn.ModuleList: {},
}


def readable(
    **parts: type[nn.Module] | tuple[type[nn.Module], ...],
) -> Callable[[type[_Module]], type[_Module]]:
    """Let fused forms do the work of a class of the model that has these parts; decorates it."""

    def decorate(kind: type[_Module]) -> type[_Module]:
        _PARTS[kind] = {
            name: kinds if isinstance(kinds, tuple) else (kinds,) for name, kinds in parts.items()
        }
        return kind

    return decorate


def runs(box: ModuleType, module: nn.Module, *inputs: object) -> bool:
    """Return whether a box runs in its fused form; logs at DEBUG why not.

    Args:
        box: A file of this folder.
        module: The module of the model whose ``forward`` asks.
        inputs: What its ``unsupported_reason`` takes beside it.
    """
    reason = plain_reason(box, module, *inputs)
    if reason is None:
        return True
    if not torch.compiler.is_compiling():  # compilers trace no logging
        _log.debug("%s runs plain: %s", box.__name__.rpartition(".")[2], reason)
    return False


def plain_reason(box: ModuleType, module: nn.Module, *inputs: object) -> str | None:
    """Return why a box does not run in its fused form, or None; arguments as for ``runs``."""
    # What is compiled launches nothing of its own: whoever asks for the reference has it.
    if not torch.compiler.is_compiling() and requested(None) == "reference":
        return "the reference was asked for"
    reason: str | None = box.unsupported_reason(module, *inputs)
    return reason


def touched_reason(owner: nn.Module, *names: str) -> str | None:
    """Return what somebody did to parts of a module, all or those named, or None.

    None says that to call them is to do what their classes do with their parameters, all of one
    dtype, that nothing is dropped at random, and that nobody sees the calls. What was done to
    ``owner`` itself does not count: who asks is within its call.
    """
    if nn.modules.module._has_any_global_hook():  # type: ignore[no-untyped-call]
        return "there are hooks for all modules"
    wanted: dict[str, tuple[type[nn.Module], ...]] = {}
    for kind in type(owner).__mro__:
        if kind in _PARTS:
            wanted = _PARTS[kind]
            break
    dtype = None
    waiting = [
        (part, wanted.get(name))
        for name, part in vars(owner)["_modules"].items()
        if part is not None and (not names or name in names)
    ]
    while waiting:
        module, kinds = waiting.pop()
        kind, facts = type(module), vars(module)
        if kinds is not None and kind not in kinds:
            return f"a {kind.__name__} stands where a {kinds[0].__name__} was"
        if kind not in _LAYERS and kind not in _PARTS:
            return f"one of its layers is a {kind.__name__}"
        if "forward" in facts:
            return f"a {kind.__name__} in it has a forward of its own"
        if (
            facts["_forward_hooks"]
            or facts["_forward_pre_hooks"]
            or facts["_backward_hooks"]
            or facts["_backward_pre_hooks"]
        ):
            return f"a {kind.__name__} in it has hooks"
        if kind is nn.Dropout and facts["training"] and facts["p"] > 0.0:
            return "dropout is active"
        parameters = facts["_parameters"]
        for name in _LAYERS.get(kind, ()):
            if parameters.get(name) is None:
                return f"a {kind.__name__} in it has no parameter {name!r}"
        for parameter in parameters.values():
            if parameter is None:
                continue
            if type(parameter) not in _WEIGHTS:
                return f"a {kind.__name__} in it has weights that are a {type(parameter).__name__}"
            if parameter.dtype is not dtype:
                if dtype is not None:
                    return f"its weights are {dtype} and {parameter.dtype}"
                dtype = parameter.dtype
        parts = _PARTS.get(kind, {})
        for name, part in facts["_modules"].items():
            if part is not None:
                waiting.append((part, parts.get(name)))
    return None
