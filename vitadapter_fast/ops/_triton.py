# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The only door to Triton: whether it runs here, how kernels are launched, how they are tuned.

Importing this module does not import Triton. Kernels live in modules that import it at the top and
are themselves imported when the first call comes.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..native import tensors

_OLDEST = (3, 1)
# Before it, bfloat16 does not compile for sm_75 nor products for sm_70: one aborts the process.
_OLDEST_BELOW_SM_80 = (3, 4)
_OLDEST_FOR_FLOAT64 = (3, 5)  # in tl.dot
_OLDEST_CAPABILITY = (7, 0)  # of relaxed atomics

_is_traced: ContextVar[bool] = ContextVar("vitadapter_fast_is_traced", default=False)
_launch_reasons: dict[torch.device, str | None] = {}


@cache
def unavailable_reason() -> str | None:
    """Return why Triton cannot be used, or None."""
    wanted = _dotted(_OLDEST)
    try:
        version = str(import_module("triton").__version__)
        import_module("triton.language")
    except Exception as error:  # a broken installation raises more than ImportError
        return f"triton does not import ({error}); pip install 'triton>={wanted}'"
    if _parsed(version) < _OLDEST:
        return f"it needs triton {wanted} or newer, got {version}"
    return None


def _parsed(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


@cache
def _version() -> tuple[int, ...]:
    return _parsed(str(import_module("triton").__version__))


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
    kind = tensors.device_type(tensor)
    if kind == "cuda":
        return None if is_interpreted() else _device_reason(tensor)
    if kind == "cpu" and is_interpreted():
        return None
    return (
        f"it runs on CUDA and ROCm tensors, got {tensor.device}; for debugging it runs on CPU "
        "tensors, slowly, where TRITON_INTERPRET=1 is set before triton is imported"
    )


def float64_reason() -> str | None:
    """Return why kernels cannot multiply matrices of float64, or None."""
    if is_interpreted() or _version() >= _OLDEST_FOR_FLOAT64:
        return None
    wanted, got = _dotted(_OLDEST_FOR_FLOAT64), _dotted(_version())
    return f"in float64 it needs triton {wanted} or newer, got {got}"


@cache
def capability(device: torch.device) -> tuple[int, int] | None:
    """Return the compute capability of an NVIDIA GPU; None for others, and where there is none."""
    # What is compiled for a GPU that is not here shows when it runs.
    if torch.version.hip is not None or not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_capability(device)


def _device_reason(tensor: Tensor) -> str | None:
    """Return why kernels cannot be compiled for the tensor's GPU or launched on it, or None."""
    if (reason := _capability_reason(tensor.device)) is not None:
        return reason
    if tensor.device not in _launch_reasons:
        # A compiler shows tensors of its own, and what it traces is launched later.
        if _is_traced.get() or type(tensor) not in (Tensor, torch.nn.Parameter):
            return None
        with tensors.current_device(tensor):
            # The first launch loads code, which a capture forbids: it fails by itself or not.
            if torch.cuda.is_current_stream_capturing():
                return None
            _launch_reasons[tensor.device] = _launch_reason(tensor.device)
    return _launch_reasons[tensor.device]


@cache
def _capability_reason(device: torch.device) -> str | None:
    found = capability(device)
    if found is None or found >= (8, 0):
        return None
    name = f"{device} is an sm_{found[0]}{found[1]}"
    if found < _OLDEST_CAPABILITY:
        return f"it needs a GPU of sm_70 or newer, and {name}"
    if _version() < _OLDEST_BELOW_SM_80:
        wanted, got = _dotted(_OLDEST_BELOW_SM_80), _dotted(_version())
        return f"{name}, for which it needs triton {wanted} or newer, got {got}"
    return None


def _launch_reason(device: torch.device) -> str | None:
    """Launch a kernel of one line on the current device; return why that fails, or None.

    Triton builds its launcher with the machine's C compiler when the first kernel is launched, and
    writes kernels to a cache: importing it proves neither.
    """
    from ._triton_probe import touch

    try:
        launch(touch, grid=(1,), out=torch.empty(1, dtype=torch.int32, device=device))
    except torch.OutOfMemoryError:
        raise  # says nothing about Triton
    except Exception as error:  # of a compiler, a driver, a file system
        text = (str(error).strip().splitlines() or ["no message"])[0]
        return (
            f"triton cannot launch kernels on {device} ({type(error).__name__}: {text}); it needs "
            "a C compiler, the headers of Python and a cache that it can write to"
        )
    return None


def dot_precision(dtype: torch.dtype) -> str:
    """Return how tl.dot may multiply operands of this dtype, for its ``input_precision``.

    float32 as in torch's own products on the device, all others exactly.
    """
    # AMD's compiler knows "tf32" for one family of GPUs only, and refuses it for all others, in any
    # dtype.
    if dtype != torch.float32 or torch.version.hip is not None:
        return "ieee"
    switches = torch.backends.cuda.matmul
    # Since torch 2.9, which recommends this switch; once it was used, reading an older one raises,
    # while it follows those.
    if hasattr(switches, "fp32_precision"):
        return "tf32" if switches.fp32_precision == "tf32" else "ieee"
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


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
    return nullcontext() if _is_traced.get() else tensors.current_device(tensor)


# From Triton 3.10 on, fusion is off unless asked for: a fifth more instructions. What torch traces
# cannot ask.
LAUNCH_OPTIONS = {"enable_fp_fusion": True}


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
        torch.library.wrap_triton(kernel)[grid](**arguments)
    else:
        kernel[grid](**arguments, **LAUNCH_OPTIONS)


def rows(name: str, tensor: Tensor) -> dict[str, Any]:
    """Return a tensor as kernels take it: rows a fixed stride apart, and rows from image to image.

    The stride is compiled into the address arithmetic; it is the same for all image sizes. A row is
    what lies behind the first two dimensions.
    """
    tensor = tensors.dense_rows(tensor)
    B, count = tensor.shape[:2]
    width = math.prod(tensor.shape[2:])
    by_image, by_row = tensor.stride()[:2]
    if count <= 1:
        by_row = max(1, width)
    if by_row == 0 or (B > 1 and by_image % by_row != 0):
        tensor, by_image, by_row = tensor.contiguous(), count * width, max(1, width)
    per_image = by_image // by_row if B > 1 else 0
    return {name: tensor, f"{name}_rows": per_image, f"{name.upper()}_ROW": int(by_row)}


MAX_SIZES = 16  # of one kind in a call: what size_of in _triton_sizes.py takes


def packed_sizes(name: str, sizes: Sequence[tuple[int, int]]) -> dict[str, int]:
    """Return (h, w) pairs as arguments of a kernel, h << 32 | w, named name0, name1, ...

    No kernel is specialized for them, so a new image size compiles nothing. Those of ``MAX_SIZES``
    that a call does not have are left out: an extractor has four of 32, and a launch of its 24
    arguments takes Python 28 us where one of 52 takes 34 (Triton 3.9, a stub driver).
    """
    packed = [h * 2**32 + w for h, w in sizes]
    if _is_traced.get():
        packed += [0] * (MAX_SIZES - len(packed))  # torch wants every argument of a kernel
    return {f"{name}{i}": size for i, size in enumerate(packed)}


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


# (bytes of an element, channels padded to a power of two) -> launch parameters; (0, 0): all others.
Table = dict[tuple[int, int], Config]

_MOST_IN_A_THREAD = 64  # elements of a trial

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
    *,
    width: int,
    adds_to: Tensor | None = None,
) -> None:
    """Call ``run`` with the launch parameters of ``key``: tuned ones if there are, or ``default``.

    Args:
        key: Names the kernel, the device and what its speed depends on.
        default: From the kernel's table.
        run: Launches the kernel.
        width: Elements that a program keeps for each of its rows.
        adds_to: Zeros to which the kernel adds: zeroed again after trial runs.
    """
    if _is_tuning and key not in _tuned and not _is_traced.get():
        trials = _neighbors(default, width)
        _tuned[key] = min(trials, key=lambda config: _time_ms(run, config))
        if adds_to is not None:
            adds_to.zero_()
    run(_tuned.get(key, default))


def _neighbors(config: Config, width: int) -> list[Config]:
    """Return launch parameters worth a trial, ``config`` first: of equals it wins."""
    rows = [config.rows, config.rows // 2, config.rows * 2, config.rows // 4, config.rows * 4]
    warps = [config.num_warps, *(count for count in (1, 2, 4, 8) if count != config.num_warps)]
    found = [Config(r, w, config.num_stages) for r in rows if 8 <= r <= 512 for w in warps]
    # More elements than that in a thread spill, and take the compiler minutes.
    most = _MOST_IN_A_THREAD * 32
    return [config] + [c for c in found[1:] if c.rows * width <= most * c.num_warps]


def _time_ms(run: Callable[[Config], None], config: Config) -> float:
    if is_interpreted():
        return 0.0  # its time says nothing
    do_bench = import_module("triton.testing").do_bench
    try:
        return float(do_bench(lambda: run(config)))
    except torch.OutOfMemoryError:
        raise  # says nothing about the parameters
    except Exception:
        # Does not compile, or not for this GPU; errors of the default come again when it runs.
        return float("inf")
