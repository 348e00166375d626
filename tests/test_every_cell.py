# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Every cell of the op x backend table runs here, forward and backward; empty ones are listed.

Without a device, CUDA kernels run as C++ and Triton kernels in Triton's interpreter.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from vitadapter_fast import checks
from vitadapter_fast.ops import _triton
from vitadapter_fast.ops._backends import NAMES, name_of

sys.path.insert(0, str(Path(__file__).parent / "ops"))

# Both entry points of the attention live in one folder.
FOLDERS = {"ms_deform_attn_grid": "ms_deform_attn"}
# GPUs run the attention in Triton, and torch's own batch norm.
EMPTY = {
    ("window_attention", "cuda"),
    *((op, name) for op in ("batch_norm", "int8_linear") for name in ("cuda", "triton")),
}
CELLS = [(op, b) for op in checks.probes() for b in NAMES if (op, b) not in EMPTY]


def backend_modules(op: str) -> Any:
    return import_module(f"vitadapter_fast.ops.{FOLDERS.get(op, op)}").BACKENDS


def backend_module(op: str, backend: str) -> Any:
    found = {name_of(module): module for module in backend_modules(op)}
    lacking = {(op, name) for name in set(NAMES) - set(found)}
    assert lacking == {cell for cell in EMPTY if cell[0] == op}, f"{op} lacks {lacking}"
    return found[backend]


@pytest.mark.parametrize(("op", "backend"), CELLS, ids=["-".join(cell) for cell in CELLS])
def test_cell_runs_and_is_right(op: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = backend_module(op, backend)
    has_device = torch.cuda.is_available() and backend in ("cuda", "triton")
    if backend == "cuda" and not has_device:
        from cuda_on_cpu import route

        route(monkeypatch)
    if backend == "triton" and not has_device:
        assert _triton.is_interpreted()
    # The backward of one that has none is its forward.
    names = [name for name in ("forward", "backward") if hasattr(module, name)]
    ran = []
    for name in names:
        run = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *args, run=run, name=name: ran.append(name) or run(*args)
        )
    assert checks.check(checks.probes()[op], backend, torch.float32) <= 1
    assert set(names) == set(ran) and len(ran) >= 2


@pytest.mark.parametrize(("op", "backend"), sorted(EMPTY))
def test_empty_cell_names_the_backends_that_there_are(op: str, backend: str) -> None:
    found = {name_of(module) for module in backend_modules(op)}
    assert found == set(NAMES) - {name for folder, name in EMPTY if folder == op}
    reason = str(checks.why_not(op, checks.probes()[op], backend))
    assert reason.startswith(f"has no backend '{backend}', only ")
    assert all(name in reason for name in found)
