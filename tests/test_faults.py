# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The table of docs/failures.md, "When something fails": one test a row, named after it."""

import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pybind11
import pytest
import torch
from checkpoint_cases import official, saved, tiny_model
from folders import names_in
from torch import Tensor

from vitadapter_fast import BackendUnavailable, CheckpointError
from vitadapter_fast.commands import cli
from vitadapter_fast.native import cuda_device, extension
from vitadapter_fast.ops import _cuda, _triton, window_attention
from vitadapter_fast.ops.window_attention import cpu
from vitadapter_fast.weights import load_checkpoint

ROOT = Path(__file__).resolve().parents[1]
QKV = torch.randn(1, 4, 3, 2, 8, generator=torch.Generator().manual_seed(0))


def attend(backend: str | None = None) -> Tensor:
    """A call of an operator that every build has kernels for."""
    return window_attention(QKV, (2, 2), None, backend=backend)


def run(code: str, *arguments: Any, status: int = 0, folder: Path = ROOT) -> Any:
    """Run code in a process of its own, which must end with this status."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), f"{ROOT}/tests/helpers"])}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=env)
    assert done.returncode == status, done.stderr[-3000:]
    return done


def test_docs_and_tests_name_the_same_faults() -> None:
    page = (ROOT / "docs" / "failures.md").read_text()
    rows = re.findall(r"^\| (.+?) \|", page, re.MULTILINE)[1:]
    slugs = ["test_" + re.sub(r"\W+", "_", row.lower()).strip("_") for row in rows]
    tests = [name for name in globals() if name.startswith("test_") and "docs" not in name]
    assert slugs == tests


@pytest.mark.skipif(sys.platform != "linux", reason="sets limits as Linux knows them")
def test_out_of_memory_in_forward_or_backward() -> None:
    program = (Path(__file__).parent / "helpers" / "out_of_memory.py").read_text()
    *moments, in_forward, in_backward = json.loads(run(program).stdout)
    outcomes = [moment for moment in moments if moment]  # in 1 of 40 runs the heap holds a step
    told = re.compile("can't allocate memory|std::bad_alloc")
    assert all(kind == "MemoryError" or told.search(message) for _, kind, message in outcomes)
    assert {when for when, kind, _ in outcomes if kind == "RuntimeError"} == {"forward", "backward"}
    told_by_kernel = "vitadapter_fast: ms_deform_attn_{}_cpu: no memory beside the outputs"
    assert in_forward == ["forward", "MemoryError", told_by_kernel.format("forward")]
    assert in_backward == ["backward", "MemoryError", told_by_kernel.format("backward")]


INTERRUPTED = """
import os, signal, sys, time
from vitadapter_fast.weights import files
from vitadapter_fast.commands.convert import main

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have switched it off

def save(tensors, file):
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), getattr(signal, sys.argv[1]))
    time.sleep(60)

files.torch.save = save
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize(
    ("name", "status", "left"),
    [
        pytest.param("SIGINT", 130, 0, marks=pytest.mark.thorough),
        pytest.param("SIGTERM", 143, 0, marks=pytest.mark.thorough),
        ("SIGKILL", -9, 1),
    ],
)
def test_conversion_interrupted(name: str, status: int, left: int, tmp_path: Path) -> None:
    source = saved(official(), tmp_path / "vit.pth")
    run(INTERRUPTED, name, source, status=status)
    parts = [name for name in names_in(tmp_path) if re.fullmatch(r"\.vit_14.+\.part", name)]
    assert len(parts) == left
    assert names_in(tmp_path) == [*parts, "vit.pth"]
    run("from vitadapter_fast.commands.convert import main; raise SystemExit(main())", source)
    assert names_in(tmp_path) == [*parts, "vit.pth", "vit_14to16.pth"]


DISK_FULL = """
import os, resource, sys
from vitadapter_fast.commands.cli import main
from vitadapter_fast.commands.convert import main as convert

arguments = ["features", "--device", "cpu", "--size", "96"]
for max_bytes, file in ((50_000, "photo.png"), (600_000, "maps.safetensors")):
    open(file, "w").write("old")
    resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, resource.RLIM_INFINITY))
    assert main([*arguments, "--out", "photo.png", "--save", "maps.safetensors"]) == 1
    assert open(file).read() == "old"
assert sorted(os.listdir()) == ["elsewhere", "maps.safetensors", "photo.png"]
for command in (main, convert):
    for buffering in (1, -1):
        sys.stdout = open("/dev/full", "w", buffering)
        assert command(["configs"] if command is main else [sys.argv[1]]) == 1
assert os.path.getsize("elsewhere/vit_14to16.pth") > 100_000
"""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
def test_disk_full(tmp_path: Path) -> None:
    """For conversions see commands/test_convert.py."""
    (tmp_path / "elsewhere").mkdir()
    source = saved(official(), tmp_path / "elsewhere" / "vit.pth")
    done = run(DISK_FULL, source, folder=tmp_path)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    for name, each in zip(["photo.png", *["maps.safetensors"] * 2], errors, strict=False):
        assert re.match(f"error: {name}: cannot be written: .*File too large", each)
    assert errors[3:] == ["error: the output cannot be written: No space left on device"] * 4


def test_one_photo_of_many_unreadable_or_without_room(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """For what else can fail see commands/test_cli.py."""
    pytest.importorskip("rich", reason="needs the [cli] extra")
    bad, good = tmp_path / "bad.jpg", ROOT / "vitadapter_fast" / "data" / "blood_cells.jpg"
    photos = ["features", str(bad), str(good)]
    small = ["--size", "96", "--device", "cpu", "--weights", "random"]
    assert cli.main([*photos, "--out", str(tmp_path), *small]) == 1
    out, err = capsys.readouterr()
    assert "1 of 2" in out and "1, told below" in out and err == f"error: {bad}: no such file\n"
    assert names_in(tmp_path) == ["blood_cells.png"]


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("unreadable", "cannot be read: Permission denied"),
        ("pipe", "a pipe or device; save it to a file first"),
        ("cut short", "the file is truncated; fetch it again"),
        ("empty", "the file is empty; fetch it again"),
    ],
)
def test_checkpoint_unreadable_cut_short_or_empty(
    kind: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(official(), tmp_path / "vit.pth")
    content = path.read_bytes()
    if kind == "unreadable":
        monkeypatch.setattr(Path, "open", deny)  # its permissions would not stop root
    elif kind == "pipe":
        path.unlink()
        os.mkfifo(path)
    else:
        path.write_bytes(content[: len(content) // 2] if kind == "cut short" else b"")
    model = tiny_model()
    before = [each.clone() for each in model.state_dict().values()]
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(path))}: {told}$"):
        load_checkpoint(model, path)
    assert all(map(torch.equal, before, model.state_dict().values()))


def test_checkpoint_does_not_fit_or_holds_several(tmp_path: Path) -> None:
    """Each hint, set and shard: weights/test_hints.py, test_choice.py and test_forms.py."""
    half, several = tmp_path / "model-00001-of-00002.safetensors", tmp_path / "several.pth"
    swiglu = saved(official(is_swiglu=True), tmp_path / "swiglu.pth")
    saved(official(), half)
    saved({"model": official(), "teacher": official()}, several)
    model = tiny_model()
    before = [each.clone() for each in model.state_dict().values()]
    for path, told in (
        (swiglu, 'build the model with ffn="swiglu"'),
        (several, r'several state dicts \(model, teacher\); .* prefer="model"'),
        (half, "one of 2 shards; .* load .*model.safetensors.index.json"),
    ):
        with pytest.raises(CheckpointError, match=told):
            load_checkpoint(model, path)
    assert all(map(torch.equal, before, model.state_dict().values()))
    load_checkpoint(tiny_model(ffn="swiglu"), swiglu)
    load_checkpoint(model, several, prefer="model")


def deny(*args: Any) -> None:
    raise PermissionError(13, "Permission denied")


def check_that_reference_stands_in(reason: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "vitadapter_fast"):
        assert torch.equal(attend(), attend("reference"))
        assert torch.equal(attend(), attend("reference"))
    warnings = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert len(warnings) == 1 and reason in warnings[0] and "pip install ." in warnings[0]
    assert f"window_attention: skipped cpu: {reason}" in caplog.text
    with pytest.raises(BackendUnavailable, match=f"backend 'cpu' cannot run: {re.escape(reason)}"):
        attend("cpu")


@pytest.mark.parametrize(
    "error", ["No module named 'vitadapter_fast._C'", "libstdc++.so.6: `GLIBCXX_3.4.99' not found"]
)
def test_extension_missing_or_not_loadable(
    error: str, fresh: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(name: str) -> ModuleType:
        raise ImportError(error)

    fresh.setattr(extension, "import_module", fail)
    fresh.setattr(_triton, "is_interpreted", lambda: False)
    reason = f"the compiled extension vitadapter_fast._C does not load ({error})"
    check_that_reference_stands_in(reason, caplog)


def test_extension_of_another_version_or_build(
    fresh: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(RuntimeError, match=r"built from other sources.*`pip install \.`"):
        extension.launch("window_attention_forward_cpu", none_of_its_arguments=1)
    with pytest.raises(RuntimeError, match=r"built from other sources.*`pip install \.`"):
        extension.launch("none_of_its_launchers")
    built = extension.build_info()["version"]
    extension.load.cache_clear()
    fresh.setattr(extension, "__version__", "99.0")
    fresh.setattr(_triton, "is_interpreted", lambda: False)
    reason = f"the compiled extension is of version {built}, the package of 99.0"
    check_that_reference_stands_in(reason, caplog)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("nvcc: cannot run", "nvcc does not work"),
        (
            "Cuda compilation tools, release 11.8",
            "NVCC is of CUDA 11.8, and 12.0 or newer is needed",
        ),
        (
            "fatal error: cuda_runtime.h: No such file or directory",
            r"nvcc does not work \(.*fatal error: cuda_runtime\.h: No such file or directory\)",
        ),
    ],
    ids=["broken", "too old", "without headers"],
)
def test_nvcc_broken_too_old_or_without_headers(said: str, told: str, tmp_path: Path) -> None:
    nvcc = tmp_path / "nvcc"
    # Only its version goes to stdout; the rest is an error.
    nvcc.write_text(f"#!/bin/sh\necho '{said}'\necho '{said}' >&2\nexit 1\n")
    nvcc.chmod(0o755)
    told = told.replace("NVCC", str(nvcc))

    def configure(switch: str) -> subprocess.CompletedProcess[str]:
        folder = tmp_path / switch
        options = {
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
            "VITADAPTER_CUDA": switch,
        }
        definitions = [f"-D{name}={value}" for name, value in options.items()]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            ["cmake", "-S", str(ROOT / "csrc"), "-B", str(folder), "-G", "Ninja", *definitions],
            capture_output=True,
            text=True,
            env={**os.environ, "PATH": path, "CUDACXX": str(nvcc)},
        )

    done = configure("auto")
    assert done.returncode == 0 and re.search(f"CPU kernels only: {told}\n", done.stdout)
    facts = (tmp_path / "auto" / "build_facts.h").read_text()
    assert re.search(f"NO_CUDA_REASON .*{told}", facts)
    assert "VITADAPTER_CUDA_KERNELS 0" in facts
    done = configure("1")
    assert done.returncode != 0
    assert re.search(f"VITADAPTER_CUDA=1, but {told}", " ".join(done.stderr.split()))


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        (ModuleNotFoundError("No module named 'triton'"), "triton does not import (No module"),
        (OSError("libcuda.so: undefined symbol"), "triton does not import (libcuda.so"),
        ("3.0.0", "it needs triton 3.1 or newer, got 3.0.0"),
        (RuntimeError("Failed to find C compiler"), "triton cannot launch kernels on cpu (Runtime"),
    ],
    ids=["missing", "broken", "too old", "unable to launch"],
)
def test_triton_missing_broken_too_old_or_unable_to_launch(
    version: Any, reason: str, fresh: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def import_module(name: str) -> Any:
        if isinstance(version, Exception):
            raise version
        return SimpleNamespace(__version__=version)

    def launch(*args: Any, **kwargs: Any) -> None:
        raise version

    if isinstance(version, RuntimeError):
        # What a GPU's first call asks; here of the CPU.
        fresh.setattr(_triton, "launch", launch)
        device = torch.device("cpu")
        fresh.setattr(_triton, "unsupported_reason", lambda _: _triton._launch_reason(device))
    else:
        fresh.setattr(_triton, "import_module", import_module)
    fresh.setattr(cpu, "unsupported_reason", lambda call: "the test says so")
    with caplog.at_level(logging.DEBUG, "vitadapter_fast"):
        assert torch.equal(attend(), attend("reference"))
    assert f"window_attention: skipped triton: {reason}" in caplog.text
    with pytest.raises(BackendUnavailable, match=f"'triton' cannot run: {re.escape(reason)}"):
        attend("triton")


BUILD = {
    "cuda_kernels": True,
    "cuda_archs": "80-real;90-real;90-virtual",
    "cuda_compiler": "13.0.88",
}


@pytest.mark.parametrize(
    ("driver", "capability", "reason"),
    [
        ("NVIDIA driver is too old (found version 11040). Please", (9, 0), "version 11040)"),
        (12040, (9, 0), "for CUDA 12.4, the kernels were built by nvcc 13.0.88; update the driver"),
        (13000, (7, 0), "is an sm_70: the CUDA kernels need sm_75 or newer"),
        (13000, (7, 5), "is an sm_75: reinstall with VITADAPTER_CUDA_ARCHS=75 pip install ."),
        (13000, (8, 9), None),
        (13000, (12, 0), None),
    ],
)
def test_driver_too_old_or_gpu_not_built_for(
    driver: int | str,
    capability: tuple[int, int],
    reason: str | None,
    fresh: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def init() -> None:
        raise RuntimeError(driver)

    cuda_device.no_code_reason.cache_clear()
    fresh.setattr(extension, "unavailable_reason", lambda: None)
    fresh.setattr(extension, "build_info", lambda: BUILD)
    fresh.setattr(torch, "version", SimpleNamespace(hip=None, cuda="13.0"))
    fresh.setattr(torch.cuda, "is_available", lambda: not isinstance(driver, str))
    fresh.setattr(torch.cuda, "init", init)
    fresh.setattr(cuda_device, "_driver_version", lambda: driver)
    fresh.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    for _ in range(2):
        told = _cuda.unsupported_reason(SimpleNamespace(device=torch.device("cuda", 0)))
    cuda_device.no_code_reason.cache_clear()
    _cuda._warn_once.cache_clear()
    assert told == reason if reason is None else reason in str(told)
    # Without a driver there is no tensor on a GPU, and nobody to warn.
    warnings = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert len(warnings) == (reason is not None and not isinstance(driver, str))
    assert all("the CUDA kernels do not run here, Triton does instead" in each for each in warnings)


CUDA_ERROR = """
#define VITADAPTER_ISA test
#include <cstdio>
#include "common/cuda_error.h"
int main(int, char** argv) {
  std::puts(vitadapter::test::describe_cuda_error("forward", argv[1], "why", 1, 75).c_str());
}
"""
REMEDIES = {
    "cudaErrorNoKernelImageForDevice": "rebuild with VITADAPTER_CUDA_ARCHS=75 pip install .",
    "cudaErrorUnsupportedPtxVersion": "rebuild with VITADAPTER_CUDA_ARCHS=75 pip install .",
    "cudaErrorInsufficientDriver": 'update the NVIDIA driver, or use backend="reference"',
    "cudaErrorMemoryAllocation": "the device has no memory left: use smaller batches or images",
    "cudaErrorIllegalAddress": "an earlier kernel may be the cause: run again with "
    "CUDA_LAUNCH_BLOCKING=1",
}


def test_cuda_kernel_fails(tmp_path: Path) -> None:
    """That a launch does so on a device, see ops/test_cuda_device.py."""
    source, program = tmp_path / "error.cpp", tmp_path / "error"
    source.write_text(CUDA_ERROR)
    compile_it = ["g++", "-std=c++17", f"-I{ROOT / 'csrc'}", str(source), "-o", str(program)]
    subprocess.run(compile_it, check=True)
    for name, remedy in REMEDIES.items():
        told = subprocess.check_output([program, name], text=True)
        assert told == f"vitadapter_fast: forward: {name}: why on device 1 (sm_75); {remedy}\n"
