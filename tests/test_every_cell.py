# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The op x backend table has no empty cell, and every cell runs here, forward and backward.

Without a device, CUDA kernels run as C++ and Triton kernels in Triton's interpreter.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from vitadapter_fast import info
from vitadapter_fast.ops import _triton
from vitadapter_fast.ops._backends import NAMES, name_of

sys.path.insert(0, str(Path(__file__).parent / "ops"))

# Both entry points of the attention live in one folder.
FOLDERS = {"ms_deform_attn_grid": "ms_deform_attn"}
CELLS = [(op, backend) for op in info.probes() for backend in NAMES]


def backend_module(op: str, backend: str) -> Any:
    package = import_module(f"vitadapter_fast.ops.{FOLDERS.get(op, op)}")
    found = {name_of(module): module for module in package.BACKENDS}
    assert set(found) == set(NAMES), f"{op} has no cell for {set(NAMES) - set(found)}"
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
    ran = []
    for name in ("forward", "backward"):
        run = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *args, run=run, name=name: ran.append(name) or run(*args)
        )
    assert info.check(info.probes()[op], backend, torch.float32) <= 1
    assert {"forward", "backward"} <= set(ran)
