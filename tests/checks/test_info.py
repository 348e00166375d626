# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The op x backend table and the self-test behind ``python -m vitadapter_fast info``."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vitadapter_fast import checks
from vitadapter_fast.checks.facts import _cuda_device
from vitadapter_fast.commands import cli
from vitadapter_fast.native import cuda_device, extension
from vitadapter_fast.ops import _triton
from vitadapter_fast.ops.ms_deform_attn import cpu, cuda, triton


@pytest.fixture
def _without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its interpreter takes seconds for a probe."""
    for module in (_triton, triton):
        monkeypatch.setattr(module, "unsupported_reason", lambda call: "it is slow")


def test_every_op_has_a_cell_for_every_backend_and_runs_on_one() -> None:
    table = checks.table()
    attention = {"ms_deform_attn", "ms_deform_attn_grid", "window_attention"}
    others = {"batch_norm", "dwconv_gelu", "int8_linear", "patch_embed", "rope"}
    assert set(table) == others | attention
    for cells in table.values():
        assert list(cells) == ["cuda", "triton", "cpu", "reference"]
        assert cells["reference"] is None
        assert all(reason is None or reason for reason in cells.values())


@pytest.mark.usefixtures("_without_triton")
@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_cuda_cell_tells_what_was_built_and_why_it_cannot_run() -> None:
    reason = str(checks.table()["ms_deform_attn"]["cuda"])
    if extension.build_info()["cuda_kernels"]:
        assert reason.startswith("built for sm_") and "cannot run here" in reason
    else:
        assert "built without CUDA kernels" in reason and "reinstall" in reason


def test_architectures_are_named_as_people_write_them() -> None:
    assert (
        cuda_device.archs({"cuda_archs": "80-real;90-real;90-virtual"}) == "sm_80, sm_90, PTX 9.0"
    )
    assert cuda_device.archs({"cuda_archs": "80;120"}) == "sm_80, PTX 8.0, sm_120, PTX 12.0"


@pytest.mark.usefixtures("_without_triton")
def test_missing_extension_is_a_reason_not_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "load", lambda: (None, "it is gone"))
    assert checks.table()["ms_deform_attn"]["cpu"] == "it is gone"
    assert checks.facts()["extension"] == "it is gone"


def test_check_passes_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", "--check"]) == 0
    out = capsys.readouterr().out
    assert "ok ms_deform_attn_grid cpu float32" in out and "ok dwconv_gelu cpu bfloat16" in out
    assert "checks passed" in out
    assert all(f"ok {name} training" in out for name in checks.boxes())


@pytest.mark.usefixtures("_without_triton")
@pytest.mark.parametrize("fault", ["output", "gradient", "nan"])
def test_check_fails_on_a_wrong_kernel(
    fault: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def spoil(tensor: Any) -> Any:
        tensor.view(-1)[7] = float("nan") if fault == "nan" else tensor.abs().max() * 1.001 + 1e-3
        return tensor

    forward, backward = cpu.forward, cpu.backward
    if fault == "gradient":
        monkeypatch.setattr(cpu, "backward", lambda *a: [spoil(g) for g in backward(*a)])
    else:
        monkeypatch.setattr(cpu, "forward", lambda *a: spoil(forward(*a)))
    assert cli.main(["info", "--check"]) == 1
    captured = capsys.readouterr()
    assert "WRONG ms_deform_attn cpu float32" in captured.out
    assert "results are wrong" in captured.err


def test_cuda_backend_objects_to_cpu_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    from vitadapter_fast.ops.ms_deform_attn._call import classic_call

    monkeypatch.setattr(cuda_device, "cuda_unavailable_reason", lambda: None)
    points = torch.zeros(1, 1, 1, 1, 1, 2)
    call = classic_call(torch.zeros(1, 4, 1, 8), [2, 2], points, points[..., 0])
    assert cuda.unsupported_reason(call) == "it runs on CUDA tensors, got cpu"


def test_triton_cell_is_the_doors_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    from vitadapter_fast.ops import _triton

    monkeypatch.setattr(_triton, "unavailable_reason", lambda: "triton is on holiday")
    table = checks.table()
    assert table["ms_deform_attn"]["triton"] == "triton is on holiday"
    assert table["ms_deform_attn_grid"]["triton"] == "triton is on holiday"


def test_whatever_a_backend_raises_is_a_reason_in_its_cell(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(call: Any) -> None:
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(triton, "unsupported_reason", fail)
    reason = "it fails here: RuntimeError: Failed to find C compiler"
    assert checks.table()["ms_deform_attn"]["triton"] == reason
    assert cli.main(["info"]) == 0
    assert "Failed to find C compiler" in capsys.readouterr().out


def test_device_of_rocm_is_named_by_its_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "version", SimpleNamespace(hip="6.4", cuda=None))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert _cuda_device() == "none found"
    properties = SimpleNamespace(gcnArchName="gfx942:sramecc+:xnack-")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "AMD Instinct MI300X")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    assert _cuda_device() == "AMD Instinct MI300X (gfx942:sramecc+:xnack-, ROCm 6.4)"


def test_torch_without_cuda_and_rocm_has_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "version", SimpleNamespace(hip=None, cuda=None))
    assert _cuda_device() == "none: this torch is a CPU build"
