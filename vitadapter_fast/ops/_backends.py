# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A call and the backends of its op in; the first backend without an objection out."""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType

from ..errors import BackendUnavailable

NAMES = ("cuda", "triton", "cpu", "reference")

_log = logging.getLogger("vitadapter_fast")
_override: ContextVar[str | None] = ContextVar("vitadapter_fast_backend", default=None)


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
