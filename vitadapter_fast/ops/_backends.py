# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A call and the backends of its op in; the first backend without an objection out."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..errors import BackendUnavailable

NAMES = ("cuda", "triton", "cpu", "reference")

_log = logging.getLogger("vitadapter_fast")
_override: ContextVar[str | None] = ContextVar("vitadapter_fast_backend", default=None)

# What checked_choice found, by what it depends on.
_choices: dict[tuple[Any, ...], ModuleType] = {}
_MOST_CHOICES = 4096
_CONSTANTS = (str, int, float, bool)


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Force one backend for every op called inside the ``with`` block, in this thread.

    Args:
        name: "cuda", "triton", "cpu" or "reference".

    Raises:
        ValueError: ``name`` is none of these. A backend that cannot run a call raises
            ``BackendUnavailable`` when the call comes.
    """
    token = _override.set(_known(name, "backend()"))
    try:
        yield
    finally:
        _override.reset(token)


def requested(argument: str | None) -> str | None:
    """Return the backend asked for: by argument, ``with`` block or environment, in this order."""
    if argument is not None:
        return _known(argument, "backend=")
    if (name := _override.get()) is not None:
        return name
    name = os.environ.get("VITADAPTER_BACKEND") or None
    return _known(name, "VITADAPTER_BACKEND") if name else None


def checked_choice(
    check: Callable[[Any], None],
    choose_for: Callable[[Any, str | None], ModuleType],
    call: tuple[Any, ...],
    argument: str | None,
) -> ModuleType:
    """Return ``choose_for(call, argument)`` after ``check(call)``.

    Neither is asked again for a call whose facts are those of an earlier one: both take 21 us for
    the attention on the path of CUDA, and to find the facts known 10 (AMD EPYC). With DEBUG on they
    are asked, so that each call's choice is logged.
    """
    facts = None if _log.isEnabledFor(logging.DEBUG) else _facts(call)
    if facts is None:
        check(call)
        return choose_for(call, argument)
    key = (choose_for, argument, requested(argument), *facts)
    if (known := _choices.get(key)) is None:
        check(call)
        known = choose_for(call, argument)
        if len(_choices) >= _MOST_CHOICES:
            _choices.clear()
        _choices[key] = known
    return known


def _facts(call: tuple[Any, ...]) -> list[Any] | None:
    """Return all that checks and choices may depend on; None for tensors that stand for others."""
    facts: list[Any] = []
    for part in call:
        kind = type(part)
        if kind is Tensor or kind is torch.nn.Parameter:
            facts += (part.shape, part.stride(), part.dtype, part.device, part.data_ptr() % 16)
        elif kind is list:
            facts.append(tuple(part))
        elif part is None or kind in _CONSTANTS:
            facts.append(part)
        else:
            return None
    return facts


def choose(
    op: str, backends: Sequence[ModuleType], call: object, argument: str | None
) -> ModuleType:
    """Return the requested backend, or the first whose ``unsupported_reason(call)`` is None.

    Args:
        op: Name of the op, for messages.
        backends: Modules in the order in which they are tried.
        call: The tensors and sizes of the call.
        argument: The caller's ``backend=`` argument. A ``with`` block or the environment asks all
            ops, and one that has no backend of the name takes the first that can run.

    Raises:
        BackendUnavailable: The requested backend, or every backend, objects; says why.
    """
    wanted = requested(argument)
    if argument is None and wanted is not None and wanted not in map(name_of, backends):
        # The choice for a whole model leaves alone an op that has no such backend.
        _log.debug("%s: has no backend %r", op, wanted)
        wanted = None
    if wanted is None:
        reasons = []
        for module in backends:
            reason = module.unsupported_reason(call)
            if reason is None:
                return module
            _log.debug("%s: skipped %s: %s", op, name_of(module), reason)
            reasons.append(f"{name_of(module)}: {reason}")
        raise BackendUnavailable(f"{op}: no backend can run this call: {'; '.join(reasons)}")
    for module in backends:
        if name_of(module) == wanted:
            if (reason := module.unsupported_reason(call)) is not None:
                raise BackendUnavailable(f"{op}: backend {wanted!r} cannot run: {reason}")
            return module
    offered = ", ".join(name_of(module) for module in backends)
    raise BackendUnavailable(f"{op}: has no backend {wanted!r}, only {offered}")


def name_of(module: ModuleType) -> str:
    """Return the backend's name: the file is called after it."""
    return module.__name__.rpartition(".")[2]


def _known(name: str, source: str) -> str:
    if name not in NAMES:
        raise ValueError(f"{source} must be one of {', '.join(NAMES)}, got {name!r}")
    return name
