# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The door to the extension: which devices its CUDA kernels run on, and who is told why not."""

import ast
import logging
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from vitadapter_fast import backend, info, ops
from vitadapter_fast.native import cuda_device, extension
from vitadapter_fast.ops import _cuda, _triton

DEVICE: Any = SimpleNamespace(device=torch.device("cuda", 0))
DEVICES = [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0), (12, 1)]


def on_a_gpu(
    fresh: pytest.MonkeyPatch,
    archs: str = "80-real;90-real;90-virtual",
    nvcc: str = "13.0.88",
    driver: int = 13000,
    capability: tuple[int, int] = (8, 0),
    **facts: Any,
) -> str | None:
    """Return why the kernels of such a build do not run on such a device."""
    build = {"cuda_kernels": True, "cuda_archs": archs, "cuda_compiler": nvcc, **facts}
    fresh.setattr(extension, "unavailable_reason", lambda: None)
    fresh.setattr(extension, "build_info", lambda: build)
    fresh.setattr(cuda_device, "_driver_version", lambda: driver)
    fresh.setattr(torch, "version", SimpleNamespace(hip=None, cuda="13.0"))
    fresh.setattr(torch.cuda, "is_available", lambda: True)
    fresh.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    return _cuda.unsupported_reason(DEVICE)


@pytest.mark.parametrize(
    ("archs", "runs_on"),
    [
        ("80-real", [(8, 0), (8, 6), (8, 9)]),
        ("89-real", [(8, 9)]),
        ("80-virtual", DEVICES[1:]),
        ("90", DEVICES[4:]),
        ("90a-real", [(9, 0)]),
        ("90a", [(9, 0)]),
        ("100a-real;120-real", [(10, 0), (12, 0), (12, 1)]),
        ("100f-real", [(10, 0), (10, 3)]),
        ("120f", [(12, 0), (12, 1)]),
        ("120f-virtual", [(12, 0), (12, 1)]),
        ("75-real", [(7, 5)]),
    ],
)
def test_code_runs_on_the_devices_that_it_was_made_for(
    archs: str, runs_on: list[tuple[int, int]], fresh: pytest.MonkeyPatch
) -> None:
    found = []
    for capability in DEVICES:
        cuda_device.no_code_reason.cache_clear()
        if on_a_gpu(fresh, archs, capability=capability) is None:
            found.append(capability)
    assert found == runs_on


@pytest.mark.parametrize(
    ("nvcc", "driver", "capability", "reason"),
    [
        # Machine code runs with any driver of the major version, PTX with none that is older.
        ("12.9.86", 12080, (8, 9), None),
        ("12.9.86", 12090, (12, 0), None),
        ("12.9.86", 13000, (12, 0), None),
        (
            "12.9.86",
            12080,
            (12, 0),
            "cuda:0 is an sm_120, for which there is only PTX of nvcc 12.9.86, and the NVIDIA "
            "driver is for CUDA 12.8: update the driver, or reinstall with "
            "VITADAPTER_CUDA_ARCHS=120 pip install . (it takes nvcc 12.8 or newer)",
        ),
    ],
)
def test_ptx_asks_for_a_driver_as_new_as_nvcc(
    nvcc: str,
    driver: int,
    capability: tuple[int, int],
    reason: str | None,
    fresh: pytest.MonkeyPatch,
) -> None:
    assert on_a_gpu(fresh, nvcc=nvcc, driver=driver, capability=capability) == reason


@pytest.mark.parametrize(
    ("capability", "remedy"),
    [
        ((7, 0), "is an sm_70: the CUDA kernels need sm_75 or newer"),
        ((7, 5), "is an sm_75: reinstall with VITADAPTER_CUDA_ARCHS=75 pip install ."),
        ((10, 3), "VITADAPTER_CUDA_ARCHS=103 pip install . (it takes nvcc 12.9 or newer)"),
        ((13, 0), "VITADAPTER_CUDA_ARCHS=130 pip install . (it takes an nvcc that knows it)"),
    ],
)
def test_remedy_for_a_device_without_code_is_one_that_works(
    capability: tuple[int, int], remedy: str, fresh: pytest.MonkeyPatch
) -> None:
    assert str(on_a_gpu(fresh, "90a-real", capability=capability)).endswith(remedy)


def test_gpu_without_kernels_is_told_once(
    fresh: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        reason = on_a_gpu(fresh, cuda_kernels=False, no_cuda_reason="no nvcc was found")
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("vitadapter_fast", logging.WARNING)
    told = record.getMessage()
    assert told == f"the CUDA kernels do not run here, Triton does instead: {reason}"
    assert "no nvcc was found; put a working nvcc on PATH and reinstall" in told


def test_gpu_of_another_kind_is_told_once_and_that_plain_pytorch_runs(
    fresh: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fresh.setattr(_triton, "unavailable_reason", lambda: "not installed")
    for _ in range(2):
        on_a_gpu(fresh, capability=(7, 5))
    (record,) = caplog.records
    assert "plain PyTorch does instead: built for sm_80" in record.getMessage()


@pytest.mark.parametrize("why", ["all runs", "named", "rocm", "traced", "no extension"])
def test_nobody_is_told_what_is_no_news(
    why: str, fresh: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if why == "all runs":
        assert on_a_gpu(fresh) is None
    elif why == "named":
        with backend("triton"):
            assert on_a_gpu(fresh, capability=(7, 5)) is not None
    else:
        on_a_gpu(fresh)
        cuda_device.cuda_unavailable_reason.cache_clear()
        if why == "rocm":
            fresh.setattr(torch, "version", SimpleNamespace(hip="6.2", cuda=None))
        elif why == "traced":
            fresh.setattr(torch.cuda, "is_available", lambda: False)
            fresh.setattr(torch.cuda, "init", lambda: None)
        else:
            fresh.setattr(extension, "unavailable_reason", lambda: "it does not load")
        assert _cuda.unsupported_reason(DEVICE) is not None
    assert not caplog.records


def test_an_extension_without_a_function_is_not_used(fresh: pytest.MonkeyPatch) -> None:
    older = SimpleNamespace(build_info=lambda: {"version": extension.__version__})
    fresh.setattr(extension, "import_module", lambda name: older)
    module, reason = extension.load.__wrapped__()
    assert module is None
    assert reason.startswith("the compiled extension was built from other sources: no has_half_pro")


def test_every_function_of_the_extension_is_a_launcher_or_looked_for() -> None:
    tree = ast.parse((Path(extension.__file__).parents[1] / "_C.pyi").read_text())
    functions = [each for each in tree.body if isinstance(each, ast.FunctionDef)]
    others = {each.name for each in functions if each.args.kwarg is None}
    # The first is asked before, the second by tests.
    assert others - {"build_info", "kept_bytes"} == set(extension._ASKED)


def test_a_launch_holds_tensors_that_its_caller_does_not(fresh: pytest.MonkeyPatch) -> None:
    born: list[weakref.ref[Tensor]] = []

    def made() -> Tensor:
        tensor = torch.ones(3)
        born.append(weakref.ref(tensor))
        return tensor

    def launcher(out: int, none: int, size: int) -> None:
        tensor = born[0]()
        assert tensor is not None and (out, none, size) == (tensor.data_ptr(), 0, 3)

    fresh.setattr(extension, "load", lambda: (SimpleNamespace(launcher=launcher), ""))
    extension.launch("launcher", out=made(), none=None, size=3)
    assert born[0]() is None


def test_probes_name_every_operator() -> None:
    public = {name for name in ops.__all__ if callable(getattr(ops, name))}
    assert public - set(info.probes()) <= {
        *("backend", "tuning", "int8_weight"),
        *("free_kept_memory", "keep_freed_memory", "limit_kept_memory"),
    }


@pytest.mark.parametrize("op", info.probes())
def test_call_on_cpu_tensors_does_not_start_a_driver(op: str, fresh: pytest.MonkeyPatch) -> None:
    """It takes time, and children forked after it could not use a GPU."""

    def refuse(*args: Any) -> Any:
        raise AssertionError("CUDA was initialized")

    for name in ("is_available", "init", "_lazy_init", "device_count", "current_device"):
        fresh.setattr(torch.cuda, name, refuse)
    probe = info.probes()[op]
    tensors = [tensor.float().requires_grad_() for tensor in probe.tensors]
    out: Tensor = probe.run(None, *tensors)  # type: ignore[arg-type]
    out.sum().backward()
