# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""This machine in; versions, devices and facts of the build, as text, out."""

import platform
from importlib import metadata

import torch

from ..native import cuda_device, extension, gemm, half_linear
from ..version import __version__


def facts() -> dict[str, str]:
    """Return versions, devices and build facts, ready to print."""
    build = extension.build_info()
    result = {
        "vitadapter_fast": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "CUDA device": _cuda_device(),
        "CPU threads": str(torch.get_num_threads()),
        "extension": extension.unavailable_reason()
        or f"{build['build_type']}, compiler {build['compiler']}",
    }
    if build:
        result["CPU instruction set"] = str(build["cpu_isa"])
        is_narrow = gemm.has_low_products(torch.bfloat16)
        result["bfloat16 on the CPU"] = (
            "multiplied as it is"
            if is_narrow
            else "multiplied as float16 with scales, by a kernel of ours"
            if half_linear.has_products()
            else "multiplied in float32, which is faster"
        )
        result["CUDA kernels"] = cuda_device.cuda_unavailable_reason() or (
            f"built for {cuda_device.archs(build)} by nvcc {build['cuda_compiler']}"
        )
    return result


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _cuda_device() -> str:
    if torch.version.cuda is None and torch.version.hip is None:
        return "none: this torch is a CPU build"
    if not torch.cuda.is_available():
        return "none found"
    if torch.version.hip is not None:
        name = getattr(torch.cuda.get_device_properties(0), "gcnArchName", "AMD")
        return f"{torch.cuda.get_device_name()} ({name}, ROCm {torch.version.hip})"
    major, minor = torch.cuda.get_device_capability()
    return f"{torch.cuda.get_device_name()} (sm_{major}{minor})"
