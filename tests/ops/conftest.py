# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
import os
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def _sanitized_kernels(request: pytest.FixtureRequest) -> None:
    """Run everything on the sanitized extension, where there is one: the CPU's kernels too."""
    if "VITADAPTER_TEST_CUDA_FLAGS" in os.environ:
        from cuda_on_cpu import route

        route(request.getfixturevalue("monkeypatch"))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Tell how many random calls a long run made."""
    import examples

    if examples.FACTOR > 1:
        for name, count in examples.RUNS.items():
            terminalreporter.write_line(f"{count:7d} calls in {name}")
        terminalreporter.write_line(f"{examples.RUNS.total():7d} random calls")
