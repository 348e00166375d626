# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
import os
from typing import Any

import pytest
import torch

from vitadapter_fast.native import cuda_device
from vitadapter_fast.ops import _triton


@pytest.fixture(autouse=True)
def _sanitized_kernels(request: pytest.FixtureRequest) -> None:
    """Run everything on the sanitized extension, where there is one: the CPU's kernels too."""
    if "VITADAPTER_TEST_CUDA_FLAGS" in os.environ:
        from cuda_on_cpu import route

        route(request.getfixturevalue("monkeypatch"))


def reason_against(backend: str) -> str | None:
    if backend == "cuda":
        return cuda_device.cuda_unavailable_reason()
    if not torch.cuda.is_available():
        return "no CUDA device was found"
    if (reason := _triton.unavailable_reason()) is not None:
        return reason
    return "TRITON_INTERPRET is set" if _triton.is_interpreted() else None


@pytest.fixture(params=["cuda", "triton"])
def backend(request: pytest.FixtureRequest) -> str:
    """A backend of GPUs; the test is skipped where it cannot run."""
    if (reason := reason_against(request.param)) is not None:
        pytest.skip(reason)
    return str(request.param)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Tell how many random calls a long run made."""
    import examples

    if examples.FACTOR > 1:
        for name, count in examples.RUNS.items():
            terminalreporter.write_line(f"{count:7d} calls in {name}")
        terminalreporter.write_line(f"{examples.RUNS.total():7d} random calls")
