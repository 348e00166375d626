# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The door to Triton: why it cannot be used, and that nothing enters by itself."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

import vitadapter_fast
from vitadapter_fast.errors import BackendUnavailable
from vitadapter_fast.native import cuda_device, extension
from vitadapter_fast.ops import _triton, window_attention
from vitadapter_fast.ops._triton import Config
from vitadapter_fast.ops.patch_embed import _call as patch_call
from vitadapter_fast.ops.patch_embed import triton as patch_embed
from vitadapter_fast.ops.window_attention import _call as window_call
from vitadapter_fast.ops.window_attention import triton as windows

CACHES = [
    _triton.unavailable_reason,
    _triton.is_interpreted,
    _triton._version,
    _triton.capability,
    _triton._capability_reason,
]


@pytest.fixture
def door(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Forget what the door found out, before and after."""
    for cached in CACHES:
        cached.cache_clear()
    monkeypatch.setattr(_triton, "_launch_reasons", {})
    yield monkeypatch
    monkeypatch.undo()
    for cached in CACHES:
        cached.cache_clear()


def fake_triton(version: str) -> ModuleType:
    module = ModuleType("triton")
    module.__version__ = version  # type: ignore[attr-defined]
    return module


@pytest.mark.parametrize("version", ["2.3.1", "3.0.0", "3.0.0+git1"])
def test_old_triton_is_a_reason(door: pytest.MonkeyPatch, version: str) -> None:
    door.setattr(_triton, "import_module", lambda name: fake_triton(version))
    assert _triton.unavailable_reason() == f"it needs triton 3.1 or newer, got {version}"


@pytest.mark.parametrize("version", ["3.1.0", "3.10.0", "3.2.0+rocm6.2", "4.0"])
def test_triton_from_3_1_on_is_none(door: pytest.MonkeyPatch, version: str) -> None:
    door.setattr(_triton, "import_module", lambda name: fake_triton(version))
    assert _triton.unavailable_reason() is None


@pytest.mark.parametrize("error", [ModuleNotFoundError("No module named 'triton'"), OSError("bad")])
def test_missing_or_broken_triton_is_a_reason(door: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(name: str) -> ModuleType:
        raise error

    door.setattr(_triton, "import_module", fail)
    reason = f"triton does not import ({error}); pip install 'triton>=3.1'"
    assert _triton.unsupported_reason(torch.empty(0)) == reason


def test_cpu_tensors_need_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_triton, "unavailable_reason", lambda: None)
    monkeypatch.setattr(_triton, "is_interpreted", lambda: False)
    reason = str(_triton.unsupported_reason(torch.empty(0)))
    assert "got cpu" in reason and "TRITON_INTERPRET=1" in reason
    monkeypatch.setattr(_triton, "is_interpreted", lambda: True)
    assert _triton.unsupported_reason(torch.empty(0)) is None
    assert "got meta" in str(_triton.unsupported_reason(torch.empty(0, device="meta")))


def test_importing_the_package_does_not_import_triton() -> None:
    command = "import sys, vitadapter_fast; assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", command], check=True)


def test_launch_of_nothing_does_not_touch_the_kernel() -> None:
    _triton.launch(None, grid=(3, 0))


def test_cuda_kernels_object_to_rocm_whose_tensors_are_called_cuda(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    build = {"cuda_kernels": True, "cuda_archs": "80-real"}
    monkeypatch.setattr(extension, "unavailable_reason", lambda: None)
    monkeypatch.setattr(extension, "build_info", lambda: build)
    monkeypatch.setattr(torch, "version", SimpleNamespace(hip="6.2", cuda=None))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    reason = cuda_device.cuda_unavailable_reason.__wrapped__()
    assert reason == "built for sm_80; cannot run here: this torch is for ROCm"


GPU = torch.device("cuda", 0)


class OnGPU:
    """Stands for a tensor on a GPU that is not here."""

    device = GPU


@pytest.fixture
def gpu(door: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return a function that pretends that there is a GPU, and a Triton that compiles for it."""

    def pretend(capability: tuple[int, int], triton: str = "3.9.0", hip: str | None = None) -> None:
        door.setattr(_triton, "unavailable_reason", lambda: None)
        door.setattr(_triton, "is_interpreted", lambda: False)
        door.setattr(_triton, "_version", lambda: _triton._parsed(triton))
        door.setattr(torch, "version", SimpleNamespace(hip=hip, cuda=None if hip else "12.8"))
        door.setattr(torch.cuda, "is_available", lambda: True)
        door.setattr(torch.cuda, "get_device_capability", lambda device: capability)

    yield pretend


@pytest.mark.parametrize(
    ("capability", "version", "reason"),
    [
        ((6, 0), "3.9.0", "it needs a GPU of sm_70 or newer, and cuda:0 is an sm_60"),
        ((6, 1), "3.2.0", "it needs a GPU of sm_70 or newer, and cuda:0 is an sm_61"),
        ((7, 0), "3.2.0", "cuda:0 is an sm_70, for which it needs triton 3.4 or newer, got 3.2"),
        ((7, 5), "3.3.1", "cuda:0 is an sm_75, for which it needs triton 3.4 or newer, got 3.3"),
        ((7, 5), "3.4.0", None),
        ((7, 0), "3.10.0", None),
        ((8, 0), "3.1.0", None),
        ((12, 0), "3.4.0", None),
    ],
)
def test_gpus_that_a_triton_cannot_compile_for_are_a_reason(
    gpu: Any, capability: tuple[int, int], version: str, reason: str | None
) -> None:
    gpu(capability, version)
    assert _triton.unsupported_reason(OnGPU()) == reason  # type: ignore[arg-type]


def test_gpus_of_rocm_have_no_capability_and_multiply_float32_exactly(gpu: Any) -> None:
    gpu((6, 0), "3.2.0", hip="6.2")
    assert _triton.unsupported_reason(OnGPU()) is None  # type: ignore[arg-type]
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        assert _triton.dot_precision(torch.float32) == "ieee"
    finally:
        torch.set_float32_matmul_precision(before)


def patch_reason(dtype: torch.dtype, table_dtype: torch.dtype) -> str | None:
    image, weight = (torch.empty(1, 3, 8, 8, dtype=dtype, device="meta") for _ in "iw")
    table = torch.empty(1, 1, dtype=table_dtype, device="meta")
    return patch_embed.unsupported_reason(
        patch_call.Call(image, weight, None, table, [1, 1], "bicubic")
    )


def window_reason(dtype: torch.dtype, channels: int) -> str | None:
    qkv = torch.empty(1, 16, 3, 1, channels, dtype=dtype, device="meta")
    return windows.unsupported_reason(window_call.Call(qkv, [4, 4], 2))


def test_products_of_float64_need_a_newer_triton(gpu: Any, door: pytest.MonkeyPatch) -> None:
    gpu((9, 0), "3.4.0")
    door.setattr(_triton, "unsupported_reason", lambda tensor: None)
    reason = "in float64 it needs triton 3.5 or newer, got 3.4"
    assert patch_reason(torch.float64, torch.float64) == reason
    assert patch_reason(torch.float32, torch.float64) == reason  # the table widens the sum
    assert window_reason(torch.float64, 64) == reason
    assert patch_reason(torch.float32, torch.float32) is None
    assert window_reason(torch.float32, 64) is None
    door.setattr(_triton, "_version", lambda: (3, 5))
    assert patch_reason(torch.float64, torch.float64) is None
    assert window_reason(torch.float64, 64) is None


def test_heads_too_wide_for_shared_memory_are_a_reason(door: pytest.MonkeyPatch) -> None:
    door.setattr(_triton, "unsupported_reason", lambda tensor: None)
    assert window_reason(torch.bfloat16, 256) is None
    assert window_reason(torch.float32, 256) is None
    assert window_reason(torch.bfloat16, 257) == (
        "it takes heads of at most 256 channels here, got 257"
    )
    door.setattr(windows, "_is_below_sm_80", lambda device: True)
    assert window_reason(torch.float16, 64) is None
    assert window_reason(torch.float32, 64) is None
    assert "at most 64 channels here, got 65" in str(window_reason(torch.float16, 65))
    assert "at most 64 channels here, got 65" in str(window_reason(torch.float32, 65))


class Launches:
    """What the door does with a kernel of one line, on a CPU tensor that stands for a GPU's."""

    def __init__(self, gpu: Any, door: pytest.MonkeyPatch) -> None:
        gpu((9, 0))
        self.error: Exception | None = None
        self.count = 0
        self.is_capturing = False
        self.tensor = torch.empty(0)
        door.setattr(_triton, "launch", self._launch)
        door.setattr(_triton, "_capability_reason", lambda device: None)
        door.setattr(torch.cuda, "is_current_stream_capturing", lambda: self.is_capturing)

    def _launch(self, kernel: Any, *, grid: tuple[int, ...], out: torch.Tensor) -> None:
        self.count += 1
        if self.error is not None:
            raise self.error

    def reason(self) -> str | None:
        return _triton._device_reason(self.tensor)


@pytest.fixture
def launches(gpu: Any, door: pytest.MonkeyPatch) -> Launches:
    pytest.importorskip("triton")
    return Launches(gpu, door)


def test_triton_that_cannot_launch_is_a_reason_found_once(launches: Launches) -> None:
    launches.error = RuntimeError("Failed to find C compiler. Please specify via CC\nmore lines")
    for _ in range(3):
        assert launches.reason() == (
            "triton cannot launch kernels on cpu (RuntimeError: Failed to find C compiler. Please "
            "specify via CC); it needs a C compiler, the headers of Python and a cache that it can "
            "write to"
        )
    assert launches.count == 1


def test_triton_that_launches_is_asked_once(launches: Launches) -> None:
    assert [launches.reason() for _ in range(3)] == [None] * 3
    assert launches.count == 1


def test_nothing_is_launched_while_a_graph_is_captured(launches: Launches) -> None:
    launches.error = RuntimeError("no compiler")
    launches.is_capturing = True
    assert launches.reason() is None and launches.count == 0
    launches.is_capturing = False
    assert "no compiler" in str(launches.reason())
    launches.is_capturing = True
    assert "no compiler" in str(launches.reason())  # known by now


def test_nothing_is_launched_on_what_compilers_trace(launches: Launches) -> None:
    from torch._subclasses import FakeTensorMode

    launches.error = RuntimeError("no compiler")
    with _triton.traced():
        assert launches.reason() is None
    with FakeTensorMode() as mode:
        launches.tensor = mode.from_tensor(launches.tensor)
        assert launches.reason() is None
    assert launches.count == 0


def test_memory_that_runs_out_says_nothing_about_triton(launches: Launches) -> None:
    launches.error = torch.OutOfMemoryError("full")
    with pytest.raises(torch.OutOfMemoryError):
        launches.reason()
    launches.error = None
    assert launches.reason() is None


def test_next_backend_runs_where_triton_cannot_launch(door: pytest.MonkeyPatch) -> None:
    reason = "triton cannot launch kernels on cuda:0 (RuntimeError: no compiler)"
    door.setattr(_triton, "unsupported_reason", lambda tensor: reason)
    qkv = torch.randn(1, 16, 3, 1, 8)
    assert torch.equal(
        window_attention(qkv, (4, 4), 2),
        window_attention(qkv, (4, 4), 2, backend="cpu" if not cpu_reason(qkv) else "reference"),
    )
    with pytest.raises(BackendUnavailable, match="no compiler"):
        window_attention(qkv, (4, 4), 2, backend="triton")


def cpu_reason(qkv: torch.Tensor) -> str | None:
    from vitadapter_fast.ops.window_attention import cpu

    return cpu.unsupported_reason(window_call.Call(qkv, [4, 4], 2))


PRECISION = """
import os, torch
import vitadapter_fast.ops as ops
from vitadapter_fast.ops._triton import dot_precision

SWITCHES = {
    "pass": "ieee",
    "torch.set_float32_matmul_precision('highest')": "ieee",
    "torch.set_float32_matmul_precision('high')": "tf32",
    "torch.set_float32_matmul_precision('medium')": "tf32",
    "torch.backends.cuda.matmul.allow_tf32 = True": "tf32",
    "torch.backends.cuda.matmul.allow_tf32 = False": "ieee",
    "torch.backends.cuda.matmul.fp32_precision = 'tf32'": "tf32",
    "torch.backends.cuda.matmul.fp32_precision = 'ieee'": "ieee",
    "torch.backends.fp32_precision = 'tf32'": "tf32",
    "torch.backends.fp32_precision = 'ieee'": "ieee",
}
image, patch, table = torch.ones(1, 1, 8, 8), torch.ones(4, 1, 8, 8), torch.ones(1, 4)
for switch, wanted in SWITCHES.items():
    if "fp32_precision" in switch and not hasattr(torch.backends, "fp32_precision"):
        continue
    if os.fork() == 0:  # each from torch's defaults
        exec(switch)
        assert dot_precision(torch.float32) == wanted, switch
        for dtype in (torch.float16, torch.bfloat16, torch.float64):
            assert dot_precision(dtype) == "ieee", switch
        for dtype in (torch.float32, torch.bfloat16):
            tensors = [tensor.to(dtype) for tensor in (image, patch, table)]
            out = ops.patch_embed(tensors[0], tensors[1], None, tensors[2], (1, 1), backend=BACKEND)
            assert (out == 65).all(), switch
            qkv = torch.ones(1, 4, 3, 1, 16, dtype=dtype)
            ops.window_attention(qkv, (2, 2), 2, backend=BACKEND)
        print("fine", flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.mark.thorough
def test_float32_is_multiplied_as_either_of_torchs_switches_says() -> None:
    backend = None if _triton.unsupported_reason(torch.empty(0)) else "triton"
    script = PRECISION.replace("BACKEND", repr(backend))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    count = 10 if hasattr(torch.backends, "fp32_precision") else 6
    assert done.stdout.count("fine") == count, done.stdout + done.stderr[-2000:]


def test_only_the_stub_driver_sets_a_driver_which_it_resets() -> None:
    files = Path(__file__).parents[1].rglob("*.py")
    found = {file.name for file in files if "set_active" + "(" in file.read_text()}
    assert found == {"stub_driver.py"}
    triton = pytest.importorskip("triton")
    from stub_driver import stub_driver

    before = dict(vars(triton.runtime.driver))
    with pytest.raises(ZeroDivisionError), stub_driver():
        assert triton.runtime.driver.active.get_current_target().arch == 90
        raise ZeroDivisionError
    assert vars(triton.runtime.driver) == before


def test_trials_hold_at_most_64_elements_a_thread() -> None:
    trials = _triton._neighbors(Config(64, 4), 64)
    assert trials[0] == Config(64, 4)
    assert Config(256, 8) in trials and Config(16, 1) in trials
    assert all(rows * 64 <= 64 * 32 * warps for rows, warps, _ in trials)
    # The table's own entry is tried in any case.
    assert _triton._neighbors(Config(512, 1), 64)[0] == Config(512, 1)


def test_trials_that_do_not_compile_lose(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(config: Config) -> None:
        if config != Config(16, 4):
            raise AssertionError("Input shapes should have M >= 16")

    def time_once(run: Any) -> float:
        run()
        return 1.0

    monkeypatch.setattr(_triton, "_tuned", {})
    monkeypatch.setattr(_triton, "is_interpreted", lambda: False)
    testing = SimpleNamespace(do_bench=time_once)
    monkeypatch.setattr(_triton, "import_module", lambda name: testing)
    with vitadapter_fast.tuning():
        _triton.run_configured(("k",), Config(32, 4), run, width=64)
        assert _triton._tuned == {("k",): Config(16, 4)}
        # Where nothing runs, the error is the default's.
        with pytest.raises(AssertionError, match="M >= 16"):
            _triton.run_configured(("l",), Config(128, 4), run, width=1024)
