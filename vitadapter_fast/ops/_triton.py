# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The only door to Triton: whether it runs here, how kernels are launched, how they are tuned.

Importing this module does not import Triton. Kernels live in modules that import it at the top and
are themselves imported when the first call comes.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _tensors

_OLDEST = (3, 1)

_is_traced: ContextVar[bool] = ContextVar("vitadapter_fast_is_traced", default=False)


@cache
def unavailable_reason() -> str | None:
    """Return why Triton cannot be used, or None."""
    wanted = ".".join(map(str, _OLDEST))
    try:
        version = str(import_module("triton").__version__)
        import_module("triton.language")
    except Exception as error:  # a broken installation raises more than ImportError
        return f"triton does not import ({error}); pip install 'triton>={wanted}'"
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < _OLDEST:
        return f"it needs triton {wanted} or newer, got {version}"
    return None


@cache
def is_interpreted() -> bool:
    """Return whether kernels run in Triton's interpreter: TRITON_INTERPRET=1 at its import."""
    # Triton decides for every function when it is decorated, for its own when it is imported.
    cdiv = import_module("triton.language").cdiv
    return not isinstance(cdiv, import_module("triton.runtime.jit").JITFunction)


def unsupported_reason(tensor: Tensor) -> str | None:
    """Return why kernels cannot run on the device of this tensor, or None."""
    if (reason := unavailable_reason()) is not None:
        return reason
    # ROCm too: torch calls its devices cuda.
    if tensor.device.type == "cuda" or (tensor.device.type == "cpu" and is_interpreted()):
        return None
    return (
        f"it runs on CUDA and ROCm tensors, got {tensor.device}; for debugging it runs on CPU "
        "tensors, slowly, where TRITON_INTERPRET=1 is set before triton is imported"
    )


@contextmanager
def traced() -> Iterator[None]:
    """Launch kernels into the graph that torch is tracing, in this block and thread."""
    token = _is_traced.set(True)
    try:
        yield
    finally:
        _is_traced.reset(token)


def current_device(tensor: Tensor) -> AbstractContextManager[object]:
    """Make the tensor's device current in the block; Triton launches on the current device."""
    # What is traced runs later, where torch sees to it, and maybe without a device here.
    return nullcontext() if _is_traced.get() else _tensors.current_device(tensor)


def launch(kernel: Any, *, grid: tuple[int, ...], **arguments: Any) -> None:
    """Run a kernel, or put it into the graph under ``traced``; the device must be current.

    Args:
        kernel: A function under ``triton.jit``.
        grid: Programs along each axis; nothing runs where one is 0.
        arguments: The kernel's, with num_warps and num_stages.
    """
    if 0 in grid:
        return
    if _is_traced.get():
        kernel = torch.library.wrap_triton(kernel)
    kernel[grid](**arguments)


class Config(NamedTuple):
    """Launch parameters: they change the speed of a kernel, never more than rounding.

    Attributes:
        rows: Queries, pixels or points of a program, a power of two.
        num_warps: Warps of a program, a power of two.
        num_stages: How many turns of a loop are in flight.
    """

    rows: int
    num_warps: int
    num_stages: int = 1


_tuned: dict[tuple[Any, ...], Config] = {}
# Not a ContextVar: autograd runs backward in a thread of its own.
_is_tuning = False


@contextmanager
def tuning() -> Iterator[None]:
    """Find the fastest launch parameters of every Triton kernel called inside the ``with`` block.

    A kernel that meets a new dtype, head shape or number of levels inside the block runs some 200
    times longer than usual, once; what it found holds for this process and this device. Outside
    such blocks nothing is ever tuned: parameters come from tables beside the kernels.
    """
    global _is_tuning
    before, _is_tuning = _is_tuning, True
    try:
        yield
    finally:
        _is_tuning = before


def run_configured(
    key: tuple[Any, ...],
    default: Config,
    run: Callable[[Config], None],
    adds_to: Tensor | None = None,
) -> None:
    """Call ``run`` with the launch parameters of ``key``: tuned ones if there are, or ``default``.

    Args:
        key: Names the kernel, the device and what its speed depends on.
        default: From the kernel's table.
        run: Launches the kernel.
        adds_to: Zeros to which the kernel adds: zeroed again after trial runs.
    """
    if _is_tuning and key not in _tuned and not _is_traced.get():
        _tuned[key] = min(_neighbors(default), key=lambda config: _time_ms(run, config))
        if adds_to is not None:
            adds_to.zero_()
    run(_tuned.get(key, default))


def _neighbors(config: Config) -> list[Config]:
    """Return launch parameters worth a trial, ``config`` first: of equals it wins."""
    rows = [config.rows, config.rows // 2, config.rows * 2, config.rows // 4, config.rows * 4]
    warps = [config.num_warps, *(count for count in (1, 2, 4, 8) if count != config.num_warps)]
    return [Config(r, w, config.num_stages) for r in rows if 8 <= r <= 512 for w in warps]


def _time_ms(run: Callable[[Config], None], config: Config) -> float:
    if is_interpreted():
        return 0.0  # its time says nothing
    triton = import_module("triton")
    try:
        return float(import_module("triton.testing").do_bench(lambda: run(config)))
    except triton.OutOfResources:
        return float("inf")
