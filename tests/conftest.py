# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():
    # Before anything imports triton, which decides at its import: kernels then run on the CPU.
    os.environ.setdefault("TRITON_INTERPRET", "1")

# The weights that the features command takes by itself are not here: nothing listens on port 9.
os.environ["VITADAPTER_DINOV2_URL"] = "http://127.0.0.1:9"

if "PYTEST_XDIST_WORKER" in os.environ:
    # Each worker has a core. Threads that wait for one another's turn would take three times as
    # long; what depends on their number is tested with numbers of its own.
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start

sys.path.insert(0, str(Path(__file__).parent / "helpers"))

from thorough import GROUPS, group_of  # noqa: E402


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("vitadapter_fast")
    group.addoption("--all", action="store_true", help="the long tests as well: compilers, fuzz")
    group.addoption(
        "--rest",
        nargs="?",
        const="all",
        choices=("all", *GROUPS),
        help="the long tests alone; --rest=GROUP: one of their two groups",
    )


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        config.option.leaves_out = config.workerinput["leaves_out"]
        return
    is_whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    config.option.leaves_out = ""
    if config.getoption("--rest"):
        config.option.leaves_out = f"all but {config.getoption('--rest')}"
    elif is_whole and not config.getoption("--all") and not config.option.markexpr:
        config.option.leaves_out = "thorough"


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker of pytest-xdist, which sees no command line, what is left out."""
    node.workerinput["leaves_out"] = node.config.option.leaves_out


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.option.leaves_out:
        return
    wanted: set[str | None] = {None}
    if config.option.leaves_out != "thorough":
        group = config.option.leaves_out.removeprefix("all but ")
        wanted = set(GROUPS) if group == "all" else {group}
    left_out, kept = [], []
    for item in items:
        (kept if group_of(item) in wanted else left_out).append(item)
    config.hook.pytest_deselected(items=left_out)
    items[:] = kept


@pytest.fixture(autouse=True)
def no_known_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tests replace what choices depend on: none outlives its test."""
    from vitadapter_fast.ops import _backends

    monkeypatch.setattr(_backends, "_choices", {})


@pytest.fixture
def nan_filled_memory() -> Iterator[None]:
    """Fill every fresh tensor with NaN, so that an output nobody wrote shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    assert torch.empty(7).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture
def exact_products() -> Iterator[None]:
    """Let float32 be multiplied as such, in convolutions too."""
    from vitadapter_fast.export._precision import exact_products

    with exact_products():
        yield


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Forget what the doors to the extension and to Triton found out, before and after."""
    from vitadapter_fast.native import cuda_device, extension
    from vitadapter_fast.ops import _cuda, _triton

    found = (
        extension.load,
        cuda_device.cuda_unavailable_reason,
        cuda_device.no_code_reason,
        _cuda._warn_once,
        _triton.unavailable_reason,
    )
    for each in found:
        each.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    for each in found:
        each.cache_clear()
