# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The only door to the compiled extension: tensor -> pointer, dtype code, stream, thread count."""

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..version import __version__

_LARGE_BYTES = 4 * 2**20
_DTYPE_CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3}


@cache
def _load() -> tuple[ModuleType | None, str]:
    try:
        _C = import_module("vitadapter_fast._C")
    except ImportError as error:
        return None, (
            f"the compiled extension vitadapter_fast._C does not load ({error}); "
            "reinstall with `pip install .` from the source tree"
        )
    built = _C.build_info()["version"]
    if built != __version__:
        return None, (
            f"the compiled extension is of version {built}, the package of {__version__}; "
            "reinstall with `pip install .`"
        )
    return _C, ""


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
        RuntimeError: The extension is not available; ``unavailable_reason`` says why.
    """
    module, reason = _load()
    if module is None:
        raise RuntimeError(f"vitadapter_fast: {name}: {reason}")
    getattr(module, name)(**arguments)


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
    return address(tensor)


def dtype_code(tensor: Tensor) -> int:
    """Return the extension's code for the tensor's dtype."""
    return _DTYPE_CODES[tensor.dtype]


@cache
def cuda_unavailable_reason() -> str | None:
    """Return why the extension's CUDA kernels cannot run here, or None."""
    if (reason := unavailable_reason()) is not None:
        return reason
    info = build_info()
    if not info["cuda_kernels"]:
        return (
            "the extension was built without CUDA kernels, because no nvcc was found; "
            "put nvcc on PATH and reinstall with VITADAPTER_CUDA=1 pip install ."
        )
    if torch.version.hip is not None:
        # Its devices answer to torch.cuda as well, and would be given NVIDIA's machine code.
        return f"built for {archs(info)}; cannot run here: this torch is for ROCm"
    if not torch.cuda.is_available():
        why = "this torch is a CPU build" if torch.version.cuda is None else "no device was found"
        return f"built for {archs(info)}; cannot run here: {why}"
    return None


def archs(info: dict[str, Any]) -> str:
    """Return the GPU architectures of a build as people write them: sm_80, sm_90, PTX 9.0."""
    names = []
    for arch in info["cuda_archs"].split(";"):
        number, _, kind = arch.partition("-")
        if kind != "virtual":
            names.append(f"sm_{number}")
        if kind != "real":
            names.append(f"PTX {number[:-1]}.{number[-1:]}")
    return ", ".join(names)


def place(tensor: Tensor) -> dict[str, int]:
    """Return the tensor's device index and the current stream of that device."""
    if tensor.device.type != "cuda":
        return {"device": 0, "stream": 0}
    stream = torch.cuda.current_stream(tensor.device)
    return {"device": tensor.device.index, "stream": stream.cuda_stream}


def num_threads() -> int:
    """Return how many threads a CPU kernel may use: as many as torch's own."""
    return torch.get_num_threads()


def flat(sizes: Sequence[int]) -> list[int]:
    """Return sizes as plain integers for the extension."""
    return [int(size) for size in sizes]
