# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The Python of the CUDA path on CPU tensors: every choice as on a GPU, and nothing launched.

Where the package asks for a tensor's device, the code of the function is changed to be told what
CUDA would answer: predicates may come, go and be renamed. Functions that call torch.cuda are left
as they are, for there is none. So a result is memory that nobody wrote, and a time is what it takes
to enqueue, without torch.cuda's own calls, the launcher in C++ and the driver.
"""

import gc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import CodeType, FunctionType
from typing import Any

import torch

from vitadapter_fast.ops import _native, _triton

_SCOPE = ("vitadapter_fast.ops.", "vitadapter_fast.model.")
_ASKS = {"device", "is_autocast_enabled", "is_cpu", "is_cuda"}
# What is there answers for CUDA, and nothing for the CPU.
_STRINGS = {"cuda": "cpu", "cpu": "no CPU"}
_NAMES = {"is_cuda": "is_cpu", "is_cpu": "is_meta"}


class WrongPath(AssertionError):
    """A kernel of the CPU was called: a choice still sees where the tensors are."""


@contextmanager
def cuda_path() -> Iterator[Counter[str]]:
    """Let operators and model take their CUDA path on CPU tensors inside the block.

    Yields:
        How often each launcher or Triton kernel was called so far.
    """
    if (reason := _triton.unavailable_reason()) is not None:
        raise RuntimeError(f"the CUDA path has windowed attention in Triton: {reason}")
    launched: Counter[str] = Counter()

    def launch(name: str, **arguments: Any) -> None:
        if not name.endswith("_cuda"):
            raise WrongPath(f"{name} was called on the path of CUDA")
        launched[name] += 1

    def launch_triton(kernel: Any, **arguments: Any) -> None:
        launched[kernel.__name__] += 1

    # Cached, as the functions are whose place they take.
    @cache
    def no_reason(device: torch.device | None = None) -> str | None:
        return None

    stubs: list[tuple[Any, str, Any]] = [
        (_native, "launch", launch),
        (_native, "cuda_unavailable_reason", no_reason),
        (_native, "_no_code_reason", no_reason),
        (_triton, "_device_reason", lambda tensor: None),
        (_triton, "launch", launch_triton),
    ]
    before = [(module, name, getattr(module, name)) for module, name, _ in stubs]
    codes = {function: function.__code__ for function in _functions()}
    try:
        for function, code in codes.items():
            function.__code__ = _as_on_cuda(code)
        for module, name, stub in stubs:
            setattr(module, name, stub)
        yield launched
    finally:
        for module, name, original in before:
            setattr(module, name, original)
        for function, code in codes.items():
            function.__code__ = code


def _functions() -> list[FunctionType]:
    """Return the functions of operators and model; the collector knows closures as well."""
    found = [each for each in gc.get_objects() if type(each) is FunctionType]
    return [each for each in found if (each.__module__ or "").startswith(_SCOPE)]


def _as_on_cuda(code: CodeType) -> CodeType:
    inner = [
        _as_on_cuda(const) if isinstance(const, CodeType) else const for const in code.co_consts
    ]
    # torch.cuda has "cuda" among the names.
    if _ASKS.isdisjoint(code.co_names) or "cuda" in code.co_names:
        return code.replace(co_consts=tuple(inner))
    answers = (_STRINGS.get(const, const) if type(const) is str else const for const in inner)
    names = (_NAMES.get(name, name) for name in code.co_names)
    return code.replace(co_consts=tuple(answers), co_names=tuple(names))
