# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The door to Triton: why it cannot be used, and that nothing enters by itself."""

import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace

import pytest
import torch

from vitadapter_fast.ops import _native, _triton


@pytest.fixture
def door(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Forget what the door found out, before and after."""
    _triton.unavailable_reason.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    _triton.unavailable_reason.cache_clear()


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
    monkeypatch.setattr(_native, "unavailable_reason", lambda: None)
    monkeypatch.setattr(_native, "build_info", lambda: build)
    monkeypatch.setattr(torch, "version", SimpleNamespace(hip="6.2", cuda=None))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    reason = _native.cuda_unavailable_reason.__wrapped__()
    assert reason == "built for sm_80; cannot run here: this torch is for ROCm"
