# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A CUDA device in; out whether the extension has code for it and why not, and its stream."""

import ctypes
import re
from functools import cache
from typing import Any

import torch
from torch import Tensor

from . import extension

_OLDEST_DEVICE = (7, 5)
# Devices that not every nvcc from 12.0 on has code for.
_NVCC_OF = {
    (10, 0): "nvcc 12.8 or newer",
    (10, 3): "nvcc 12.9 or newer",
    (11, 0): "nvcc 13.0 or newer",
    (12, 0): "nvcc 12.8 or newer",
    (12, 1): "nvcc 12.9 or newer",
}


@cache
def cuda_unavailable_reason() -> str | None:
    """Return why the extension's CUDA kernels can run on no device here, or None."""
    if (reason := extension.unavailable_reason()) is not None:
        return reason
    info = extension.build_info()
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


@cache
def no_code_reason(device: torch.device) -> str | None:
    """Return why the extension's CUDA kernels cannot run on this device, or None."""
    info = extension.build_info()
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


def device_and_stream(tensor: Tensor) -> dict[str, int]:
    """Return the tensor's device index and the current stream of that device."""
    if not tensor.is_cuda:
        return {"device": 0, "stream": 0}
    stream = torch.cuda.current_stream(tensor.device)
    return {"device": tensor.device.index, "stream": stream.cuda_stream}
