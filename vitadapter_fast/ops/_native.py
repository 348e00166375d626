# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The only door to the compiled extension: tensor -> pointer, dtype code, stream, thread count."""

import ctypes
import logging
import re
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..version import __version__
from . import _tensors, _triton
from ._backends import requested

_log = logging.getLogger("vitadapter_fast")

# glibc's malloc maps larger buffers anew for every use, and the system fills them with zeros.
HEAP_BYTES = 32 * 2**20

_LARGE_BYTES = 4 * 2**20
_EXPECTED_BYTES = 2**20
_AHEAD_BYTES = 30 * 2**20
_OLDEST_DEVICE = (7, 5)
# Devices that not every nvcc from 12.0 on has code for.
_NVCC_OF = {
    (10, 0): "nvcc 12.8 or newer",
    (10, 3): "nvcc 12.9 or newer",
    (11, 0): "nvcc 13.0 or newer",
    (12, 0): "nvcc 12.8 or newer",
    (12, 1): "nvcc 12.9 or newer",
}
_DTYPE_CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3}


@cache
def _load() -> tuple[ModuleType | None, str]:
    try:
        extension = import_module("vitadapter_fast._C")
    except ImportError as error:
        reason = f"the compiled extension vitadapter_fast._C does not load ({error})"
    else:
        built = extension.build_info()["version"]
        if built == __version__:
            return extension, ""
        reason = f"the compiled extension is of version {built}, the package of {__version__}"
    reason += "; reinstall with `pip install .` from the source tree"
    # No installation lacks it on purpose, and without it everything is slow: more than DEBUG.
    _log.warning("%s; until then operators run in Triton on GPUs, or in plain PyTorch", reason)
    return None, reason


def unavailable_reason() -> str | None:
    """Return why the compiled extension cannot be used, or None."""
    module, reason = _load()
    return reason if module is None else None


def build_info() -> dict[str, Any]:
    """Return the facts of the build; empty without the extension."""
    module, _ = _load()
    return dict(module.build_info()) if module else {}


def launch(name: str, **arguments: Any) -> None:
    """Call a launcher of the extension with keyword arguments.

    Raises:
        RuntimeError: The extension is not available, as ``unavailable_reason`` says; it was built
            from other sources; or CUDA refused the launch.
        MemoryError: There is none for what a kernel keeps beside its outputs.
    """
    module, reason = _load()
    if module is None:
        raise RuntimeError(f"vitadapter_fast: {name}: {reason}")
    try:
        getattr(module, name)(**arguments)
    except MemoryError as error:
        raise MemoryError(f"vitadapter_fast: {name}: no memory beside the outputs") from error
    except (AttributeError, TypeError) as error:
        raise RuntimeError(
            f"vitadapter_fast: {name}: the compiled extension was built from other sources than "
            "this package; reinstall with `pip install .` from the source tree"
        ) from error


def address(tensor: Tensor | None) -> int:
    """Return where the tensor's first element lies; 0 for no tensor."""
    return 0 if tensor is None else tensor.data_ptr()


def output_address(tensor: Tensor | None) -> int:
    """Return where a tensor on the CPU lies that nothing was written to yet.

    Large memory is asked to come in huge pages, before the first touch makes small ones of it: a
    training step of ViT-Adapter-S at 512 takes 3 % less (AMD EPYC).
    """
    if tensor is not None and tensor.nbytes >= _LARGE_BYTES:
        module, _ = _load()
        assert module is not None  # the caller launches it next
        module.prefer_huge_pages(tensor.data_ptr(), tensor.nbytes)
        expect_output(tensor.nbytes)
    return address(tensor)


def expect_output(nbytes: int) -> None:
    """Ask for huge pages under what torch allocates next on the CPU, if it is large.

    As ``output_address``, for results that other libraries allocate: the first touch of 60,000
    small pages is 8 % of a training step of ViT-Adapter-S at 512 (AMD EPYC).
    """
    if nbytes >= _EXPECTED_BYTES:
        module, _ = _load()
        if module is not None:
            module.prefer_huge_pages_next(_AHEAD_BYTES)


def dtype_code(tensor: Tensor) -> int:
    """Return the extension's code for the tensor's dtype."""
    return _DTYPE_CODES[tensor.dtype]


@cache
def cuda_unavailable_reason() -> str | None:
    """Return why the extension's CUDA kernels can run on no device here, or None."""
    if (reason := unavailable_reason()) is not None:
        return reason
    info = build_info()
    if not info["cuda_kernels"]:
        return (
            f"the extension was built without CUDA kernels: {info['no_cuda_reason']}; "
            "put a working nvcc on PATH and reinstall with VITADAPTER_CUDA=1 pip install ."
        )
    if (reason := _no_device_reason(info)) is not None:
        return f"built for {archs(info)}; cannot run here: {reason}"
    return None


def _no_device_reason(info: dict[str, Any]) -> str | None:
    if torch.version.hip is not None:
        # Its devices answer to torch.cuda as well, and would be given NVIDIA's machine code.
        return "this torch is for ROCm"
    if torch.version.cuda is None:
        return "this torch is a CPU build"
    if not torch.cuda.is_available():
        try:
            torch.cuda.init()  # type: ignore[no-untyped-call]
        except (AssertionError, RuntimeError) as error:
            return str(error).strip().split(". ")[0].removesuffix(".")
        return "no device was found"
    # A driver runs the machine code of all minor versions of its major one, and what is older.
    if _driver_release()[0] < _release(info)[0]:
        return (
            f"the NVIDIA driver is for CUDA {_dotted(_driver_release())}, the kernels were built "
            f"by nvcc {info['cuda_compiler']}; update the driver, or reinstall with an older nvcc "
            "on PATH"
        )
    return None


def _driver_release() -> tuple[int, int]:
    version = _driver_version()
    return version // 1000, version % 1000 // 10


def _release(info: dict[str, Any]) -> tuple[int, int]:
    major, minor = info["cuda_compiler"].split(".")[:2]
    return int(major), int(minor)


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def _driver_version() -> int:
    """Return what the driver is for, as 12040 for CUDA 12.4; torch has loaded it."""
    version = ctypes.c_int()
    ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    return version.value


def cuda_unsupported_reason(tensor: Tensor) -> str | None:
    """Return why the extension's CUDA kernels cannot run on the device of this tensor, or None."""
    # Before anything asks for a driver: its start takes time, and children forked after it cannot
    # use a GPU.
    if _tensors.device_type(tensor) != "cuda":
        return f"it runs on CUDA tensors, got {tensor.device}"
    reason = cuda_unavailable_reason() or _no_code_reason(tensor.device)
    if reason is not None and _is_news():
        _warn_once(reason)
    return reason


def _is_news() -> bool:
    # ROCm has no other kernels, who names a backend chose it, _load tells of no extension at all;
    # and compilers trace tensors on devices that are not here.
    return (
        torch.version.hip is None
        and requested(None) is None
        and unavailable_reason() is None
        and torch.cuda.is_available()
    )


@cache
def _warn_once(reason: str) -> None:
    # All works, but slower, and nothing else would show it: more than DEBUG.
    instead = "plain PyTorch" if _triton.unavailable_reason() else "Triton"
    _log.warning("the CUDA kernels do not run here, %s does instead: %s", instead, reason)


@cache
def _no_code_reason(device: torch.device) -> str | None:
    info = build_info()
    capability = torch.cuda.get_device_capability(device)
    kinds = {
        kind
        for arch in info["cuda_archs"].split(";")
        for kind in _kinds(arch)
        if _runs(arch, kind, capability)
    }
    if "real" in kinds:
        return None
    if not kinds:
        what = f"built for {archs(info)}; {device} is an sm_{_joined(capability)}"
        return f"{what}: {_code_remedy(capability)}"
    # Unlike machine code, PTX runs on no driver that is older than its compiler.
    if _driver_release() >= _release(info):
        return None
    return (
        f"{device} is an sm_{_joined(capability)}, for which there is only PTX of nvcc "
        f"{info['cuda_compiler']}, and the NVIDIA driver is for CUDA "
        f"{_dotted(_driver_release())}: update the driver, or {_code_remedy(capability)}"
    )


def _code_remedy(capability: tuple[int, int]) -> str:
    if capability < _OLDEST_DEVICE:
        return f"the CUDA kernels need sm_{_joined(_OLDEST_DEVICE)} or newer"
    remedy = f"reinstall with VITADAPTER_CUDA_ARCHS={_joined(capability)} pip install ."
    if capability < min(_NVCC_OF):
        return remedy
    return f"{remedy} (it takes {_NVCC_OF.get(capability, 'an nvcc that knows it')})"


def _runs(arch: str, kind: str, capability: tuple[int, int]) -> bool:
    """Return whether the machine code ("real") or PTX ("virtual") of an entry runs on a device."""
    built, suffix = _number(arch)
    if suffix == "a":  # of this device alone
        return built == capability
    if suffix == "f" or kind == "real":  # of later devices of its major version
        return built[0] == capability[0] and built <= capability
    return built <= capability


def _number(arch: str) -> tuple[tuple[int, int], str]:
    """Return 120f-real as ((12, 0), "f")."""
    match = re.match(r"(\d+)(\d)([af]?)", arch)
    assert match is not None, arch  # the build takes nothing else
    return (int(match[1]), int(match[2])), match[3]


def _kinds(arch: str) -> tuple[str, ...]:
    kind = arch.partition("-")[2]
    return (kind,) if kind else ("real", "virtual")


def _joined(capability: tuple[int, int]) -> str:
    return f"{capability[0]}{capability[1]}"


def archs(info: dict[str, Any]) -> str:
    """Return the GPU architectures of a build as people write them: sm_80, sm_90, PTX 9.0."""
    names = []
    for arch in info["cuda_archs"].split(";"):
        number, suffix = _number(arch)
        form = {"real": f"sm_{_joined(number)}", "virtual": f"PTX {_dotted(number)}"}
        names += [form[kind] + suffix for kind in _kinds(arch)]
    return ", ".join(names)


def place(tensor: Tensor) -> dict[str, int]:
    """Return the tensor's device index and the current stream of that device."""
    if not tensor.is_cuda:
        return {"device": 0, "stream": 0}
    stream = torch.cuda.current_stream(tensor.device)
    return {"device": tensor.device.index, "stream": stream.cuda_stream}


def num_threads() -> int:
    """Return how many threads a CPU kernel may use: as many as torch's own."""
    return torch.get_num_threads()


def flat(sizes: Sequence[int]) -> list[int]:
    """Return sizes as plain integers for the extension."""
    return [int(size) for size in sizes]
