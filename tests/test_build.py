# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The compiled extension: what it links and says of itself, and its build switches."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vitadapter_fast import _C, __version__
from vitadapter_fast.ops import _native

ROOT = Path(__file__).resolve().parents[1]


def build(tmp_path: Path, **switches: str) -> subprocess.CompletedProcess[str]:
    """Build the extension in a copy of the sources, in an environment that has no nvcc."""
    source = tmp_path / "source"
    shutil.copytree(ROOT / "csrc", source / "csrc")
    shutil.copytree(
        ROOT / "vitadapter_fast", source / "vitadapter_fast", ignore=lambda *_: ["data", "model"]
    )
    for extension in (source / "vitadapter_fast").glob("_C*.so"):
        extension.unlink()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    bare = tmp_path / "bin"
    bare.mkdir()
    for tool in ("sh", "gcc", "g++", "c++", "cc", "ld", "as", "ar", "ranlib", "uname"):
        if found := shutil.which(tool):
            (bare / tool).symlink_to(found)
    environment = {"PATH": str(bare), "HOME": str(tmp_path)} | switches
    return subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=source,
        env=environment,
        capture_output=True,
        text=True,
    )


def test_extension_links_neither_torch_nor_cuda() -> None:
    libraries = subprocess.run(["ldd", _C.__file__], capture_output=True, text=True, check=True)
    assert "libstdc++" in libraries.stdout
    for name in ("torch", "c10", "cuda", "nvrtc"):
        assert name not in libraries.stdout


def test_sources_include_no_torch_header() -> None:
    sources = [path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".cpp", ".h", ".cu")]
    assert sources
    for path in sources:
        text = path.read_text()
        assert "#include <torch" not in text and "#include <ATen" not in text, path


def test_build_info_names_version_and_instruction_set() -> None:
    info = _C.build_info()
    assert info["version"] == __version__
    assert info["build_type"] in ("Release", "Debug")
    assert info["cpu_isa"] == os.environ.get("VITADAPTER_ISA", info["cpu_isa"])
    assert info["cpu_isa"] in ("avx512", "avx2", "portable")


def test_extension_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "__version__", "99.0")
    _native._load.cache_clear()
    try:
        assert "of version " + __version__ in str(_native.unavailable_reason())
        with pytest.raises(RuntimeError, match="99.0"):
            _native.launch("ms_deform_attn_forward_cpu")
    finally:
        _native._load.cache_clear()


def test_wrong_sizes_never_reach_a_kernel() -> None:
    sizes = {"value_shape": [1, 4, 1, 8], "queries": 1, "num_points": 1, "query_hw": []}
    codes = {"value_dtype": 0, "points_dtype": 0, "weights_dtype": 0}
    strides = {"value_strides": (32, 8), "points_strides": (2, 2), "weights_strides": (1, 1)}
    pointers = {"value": 0, "points": 0, "weights": 0}
    with pytest.raises(ValueError, match="level sizes do not add up"):
        _C.ms_deform_attn_forward_cpu(**pointers, **codes, **strides, **sizes, level_hw=[2, 3])
    with pytest.raises(ValueError, match="pairs"):
        _C.ms_deform_attn_forward_cpu(**pointers, **codes, **strides, **sizes, level_hw=[2])


def test_debug_build_without_cuda(tmp_path: Path) -> None:
    done = build(tmp_path, VITADAPTER_DEBUG="1", VITADAPTER_CUDA="0")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (extension,) = (tmp_path / "source" / "vitadapter_fast").glob("_C*.so")
    code = f"""
import importlib.util
spec = importlib.util.spec_from_file_location("_C", {str(extension)!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(module.build_info()["build_type"], module.build_info()["cuda_compiler"])
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["Debug", "None"]


def test_demanding_cuda_without_nvcc_fails_with_the_remedy(tmp_path: Path) -> None:
    done = build(tmp_path, VITADAPTER_CUDA="1")
    assert done.returncode != 0
    assert "no working CUDA compiler was found. Put nvcc on PATH" in " ".join(done.stderr.split())


def test_unknown_switch_value_is_refused(tmp_path: Path) -> None:
    done = build(tmp_path, VITADAPTER_CUDA="yes")
    assert done.returncode != 0 and "must be auto, 0 or 1, got 'yes'" in done.stderr
