# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Build the extension with its CUDA kernels as C++ that executes on the CPU, and route calls to it.

See csrc/common/cuda_on_cpu.h for what such a run can show.
"""

import hashlib
import importlib.util
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pybind11
import pytest
import torch
from exclusive import exclusive
from summing import sum_by

from vitadapter_fast.native import extension
from vitadapter_fast.ops.dwconv_gelu import cuda as dwconv_gelu_cuda
from vitadapter_fast.ops.ms_deform_attn import _call, cuda
from vitadapter_fast.ops.patch_embed import _parts
from vitadapter_fast.ops.patch_embed import cuda as patch_embed_cuda
from vitadapter_fast.ops.rope import cuda as rope_cuda

ROOT = Path(__file__).resolve().parents[2]


def build(flags: str) -> Path:
    """Return the extension built with these flags; a build of the same sources is reused."""
    sources = sorted(path for path in (ROOT / "csrc").rglob("*") if path.is_file())
    digest = hashlib.sha256(flags.encode())
    for path in sources:
        digest.update(path.read_bytes())
    folder = ROOT / "build" / f"cuda_on_cpu-{digest.hexdigest()[:16]}"
    with exclusive(folder):
        if not any(folder.glob("out/_C*.so")):
            options = {
                "CMAKE_BUILD_TYPE": "None",
                "CMAKE_CXX_FLAGS": flags,
                "CMAKE_INSTALL_PREFIX": folder / "out",
                "Python_EXECUTABLE": sys.executable,
                "pybind11_DIR": pybind11.get_cmake_dir(),
                "VITADAPTER_BINDINGS_OPTIONS": "-O0",
                "VITADAPTER_CUDA": "on_cpu",
            }
            if "AVX" in torch.backends.cpu.get_cpu_capability():
                options["VITADAPTER_PORTABLE_OPTIONS"] = "-O0;-fno-sanitize=all"
            definitions = [f"-D{name}={value}" for name, value in options.items()]
            run("cmake", "-S", ROOT / "csrc", "-B", folder, "-G", "Ninja", *definitions)
            run("cmake", "--build", folder)
            run("cmake", "--install", folder)
    (extension,) = folder.glob("out/_C*.so")
    return extension


def run(*command: Any) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        env=os.environ | {"PATH": path},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@cache
def load() -> ModuleType:
    """Return the extension; VITADAPTER_TEST_CUDA_FLAGS adds compiler flags, as for sanitizers."""
    # -O2 compiles a third longer, and the tests run no faster: 717 in 198 s with either.
    flags = "-O1 " + os.environ.get("VITADAPTER_TEST_CUDA_FLAGS", "")
    spec = importlib.util.spec_from_file_location("_C", build(flags.strip()))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def route(
    monkeypatch: pytest.MonkeyPatch,
    value_gradient: str = "by rule",
    *,
    has_float4_atomics: bool = True,
) -> None:
    """Make ``backend="cuda"`` run on CPU tensors, for every op that has it.

    The value gradient of ``ms_deform_attn`` is summed in the given way; its atomics add four floats
    as on sm_90, or one as on what is older.
    """
    if has_float4_atomics:
        monkeypatch.delenv("VITADAPTER_TEST_NO_FLOAT4_ATOMICS", raising=False)
    else:
        monkeypatch.setenv("VITADAPTER_TEST_NO_FLOAT4_ATOMICS", "1")
    emulated = load()

    # The cpu backend as well: a sanitizer then sees its kernels too.
    monkeypatch.setattr(extension, "load", lambda: (emulated, ""))
    monkeypatch.setattr(cuda, "unsupported_reason", _call.size_reason)
    monkeypatch.setattr(patch_embed_cuda, "unsupported_reason", _parts.size_reason)
    monkeypatch.setattr(dwconv_gelu_cuda, "unsupported_reason", dwconv_gelu_cuda.size_reason)
    monkeypatch.setattr(rope_cuda, "unsupported_reason", rope_cuda.size_reason)
    if value_gradient != "by rule":
        sum_by(value_gradient, monkeypatch)
