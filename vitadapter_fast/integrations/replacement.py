# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Attributes of other people's modules and classes in; out a handle that puts them back."""

import logging
from collections.abc import Sequence
from types import TracebackType
from typing import Any, NamedTuple

from typing_extensions import Self

_log = logging.getLogger("vitadapter_fast")


class Target(NamedTuple):
    """An attribute to replace.

    Attributes:
        owner: Module or class that has it.
        name: Of the attribute.
        new: What takes its place.
    """

    owner: Any
    name: str
    new: Any

    def __str__(self) -> str:
        """Return its full name."""
        module = getattr(self.owner, "__module__", None)
        owner = self.owner.__name__ if module is None else f"{module}.{self.owner.__qualname__}"
        return f"{owner}.{self.name}"


class _Held(NamedTuple):
    original: Any
    new: Any
    # One object for each handle, kept here: a handle that nobody keeps is in force, too, and its
    # own id would soon be another's.
    handles: set[object]


# By owner and name: what stood there, what stands there now, and which handles want it to.
_held: dict[tuple[Any, str], _Held] = {}


class Replacement:
    """Replaced attributes, until ``undo()`` or the end of a ``with`` block.

    Each may be replaced many times over; it returns when the last of the handles is undone.

    Attributes:
        targets: What is replaced.
    """

    def __init__(self, targets: Sequence[Target]) -> None:
        """Replace ``targets``; those that are replaced already stay as they are."""
        self.targets = tuple(targets)
        self._mark = object()
        for owner, name, new in self.targets:
            held = _held.get((owner, name))
            if held is None or getattr(owner, name) is not held.new:
                held = _held[owner, name] = _Held(getattr(owner, name), new, set())
                setattr(owner, name, new)
            held.handles.add(self._mark)

    def undo(self) -> None:
        """Put the originals back, unless another handle is in force; later calls do nothing."""
        for target in self.targets:
            owner, name, _ = target
            held = _held.get((owner, name))
            if held is None or self._mark not in held.handles:
                continue
            held.handles.remove(self._mark)
            if held.handles:
                continue
            del _held[owner, name]
            if getattr(owner, name) is held.new:
                setattr(owner, name, held.original)
            else:
                _log.warning("%s: replaced by someone else since; left as it is", target)
        self.targets = ()

    def __enter__(self) -> Self:
        """Return the handle."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Undo."""
        self.undo()
