# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A box of the model in; None out where its fused form runs, or the sentence why it runs plain.

A fused form reads the weights of layers and does not call them. So whatever somebody did to one of
them, all modules of its box are called: hooks, pruning, parametrizations, low-rank adapters, a
``forward`` of the instance's own, another class, offloading, sharding.
"""

import logging
from types import ModuleType
from typing import TypeVar

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import Parameter

from ..ops._backends import requested

_log = logging.getLogger("vitadapter_fast")
_Module = TypeVar("_Module", bound=nn.Module)

# What weights may be: fake ones count what a model costs.
_WEIGHTS = (Parameter, FakeTensor)
# Classes whose arithmetic is done here, and the parameters that it needs.
_READABLE: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Linear: ("weight",),
    nn.Conv2d: ("weight",),
    nn.ConvTranspose2d: ("weight",),
    nn.LayerNorm: ("weight", "bias"),
    nn.BatchNorm2d: ("weight", "bias"),
    nn.SyncBatchNorm: ("weight", "bias"),
    nn.GroupNorm: ("weight", "bias"),
    nn.ReLU: (),
    nn.MaxPool2d: (),
    nn.Dropout: (),
    nn.Identity: (),
    nn.Sequential: (),
    nn.ModuleList: (),
}


def readable(kind: type[_Module]) -> type[_Module]:
    """Let fused forms do the work of a class of the model; decorates it."""
    _READABLE[kind] = ()
    return kind


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


def touched_reason(*modules: nn.Module) -> str | None:
    """Return what somebody did to one of these modules or a part of it, or None.

    None says that to call them is to do what their classes do with their parameters, all of one
    dtype, and that nobody sees the calls.
    """
    if nn.modules.module._has_any_global_hook():  # type: ignore[no-untyped-call]
        return "there are hooks for all modules"
    dtype = None
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        kind, parts = type(module), vars(module)
        needed = _READABLE.get(kind)
        if needed is None:
            return f"one of its layers is a {kind.__name__}"
        if "forward" in parts:
            return f"a {kind.__name__} in it has a forward of its own"
        if (
            parts["_forward_hooks"]
            or parts["_forward_pre_hooks"]
            or parts["_backward_hooks"]
            or parts["_backward_pre_hooks"]
        ):
            return f"a {kind.__name__} in it has hooks"
        parameters = parts["_parameters"]
        for name in needed:
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
        for part in parts["_modules"].values():
            if part is not None:
                waiting.append(part)
    return None
