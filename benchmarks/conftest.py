# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""``pytest benchmarks/``: every contender in a process of its own, checked, then timed."""

import os
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

_HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(_HERE), str(_HERE.parent / "tests" / "helpers")]
# For the processes, which import by name what this one does.
os.environ["PYTHONPATH"] = os.pathsep.join([*sys.path[:2], os.environ.get("PYTHONPATH", "")])

import estimate  # noqa: E402
from limits import device_name  # noqa: E402
from results import NO_TIME, Results, fact  # noqa: E402
from session import Session, verdict  # noqa: E402
from worker import Failed  # noqa: E402

import vitadapter_fast  # noqa: E402
from vitadapter_fast import checks  # noqa: E402

_NOTES = pytest.StashKey[list[str]]()
_RESULTS = pytest.StashKey[Results]()
SCALES = ("smoke", "cpu", "cpu_sizes", "gpu", "gpu_full")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("vitadapter_fast")
    group.addoption(
        "--scale", choices=SCALES, help="shapes; default: gpu if there is one, else cpu"
    )
    group.addoption("--original", type=Path, help="checkout of github.com/czczup/ViT-Adapter")
    group.addoption("--compiled", action="store_true", help="also torch.compile of the composition")
    group.addoption("--threads", type=int, default=torch.get_num_threads(), help="on the CPU")
    group.addoption(
        "--minutes", type=float, help="start nothing after; default: 25 for gpu, else no end"
    )


def pytest_configure(config: pytest.Config) -> None:
    option = config.option
    if not option.scale:
        option.scale = "gpu" if torch.cuda.is_available() else "cpu"
    if option.minutes is None and option.scale == "gpu":
        option.minutes = estimate.MINUTES
    if option.original:
        os.environ["VITADAPTER_ORIGINAL"] = str(option.original.resolve())
    os.environ["VITADAPTER_COMPILED"] = str(int(option.compiled))
    option.benchmark_columns = ["median", "iqr", "rounds"]
    option.benchmark_sort = "name"
    # pytest-benchmark writes when all is done, and never where that is cut short: results.py does.
    path, option.benchmark_json = option.benchmark_json, None
    if path is not None and not isinstance(path, (str, os.PathLike)):  # before 5.2 an open file
        path.close()
        path = path.name
    config.stash[_RESULTS] = Results(path and Path(path).absolute(), _machine(config))


def _device(config: pytest.Config) -> str:
    return "cuda" if config.option.scale.startswith("gpu") else "cpu"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every row that ``cases(scale)`` of the file names, for each of its contenders and passes."""
    if "row" not in metafunc.fixturenames:
        return
    rows = metafunc.module.cases(metafunc.config.option.scale, _device(metafunc.config))
    metafunc.parametrize("row", rows, ids=["-".join((row.spec.kind, *row.id)) for row in rows])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Compiled contenders last: one of them takes as long as ten others."""
    items.sort(key=lambda item: "compiled" in item.name)


def pytest_report_collectionfinish(
    config: pytest.Config, items: list[pytest.Item]
) -> list[str] | None:
    """Say how long it will take, where somebody pays for the time."""
    if _device(config) == "cpu":
        return None
    rows = [item.callspec.params["row"] for item in items if hasattr(item, "callspec")]
    return estimate.table(rows)


@pytest.fixture(scope="session")
def scale(pytestconfig: pytest.Config) -> str:
    return str(pytestconfig.option.scale)


@pytest.fixture(scope="session")
def results(pytestconfig: pytest.Config) -> Results:
    """Return what the run found so far."""
    return pytestconfig.stash[_RESULTS]


@pytest.fixture
def note(pytestconfig: pytest.Config) -> Callable[[str], None]:
    """Return a function that takes a line for the end of the run."""
    return pytestconfig.stash.setdefault(_NOTES, []).append


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print what the benchmarks noted."""
    if lines := config.stash.get(_NOTES, []):
        terminalreporter.section("noted")
        for line in lines:
            terminalreporter.write_line(line)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Mark the file as whole, unless something cut the run short."""
    is_cut = session.shouldstop or session.shouldfail
    if exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) and not is_cut:
        session.config.stash[_RESULTS].finish()


@pytest.fixture(scope="session")
def running(pytestconfig: pytest.Config, results: Results) -> Iterator[Session]:
    """Return the run, which holds the process of the current contender: it runs both passes."""
    option, device = pytestconfig.option, _device(pytestconfig)
    session = Session(device, option.threads, results, option.minutes)
    session.find_limits(("float32",) if device == "cpu" else ("float32", "bfloat16"))
    yield session
    session.drop()


@pytest.fixture
def timed(request: pytest.FixtureRequest, benchmark: Any, running: Session) -> Callable[..., None]:
    """Return a function that checks and times a row and notes what readers should know of it."""

    def run(row: Any) -> None:
        if running.is_over():
            running.results.refuse(row, NO_TIME)
            pytest.skip(f"{NO_TIME}: see --minutes")
        try:
            running.measure(row, benchmark, request.node.name)
        except Failed as failure:
            running.results.refuse(row, failure.reason)
            if verdict(row, failure) == "skipped":
                pytest.skip(f"{row.spec.contender}: {failure.reason}")
            pytest.fail(f"{row.spec}: refused to time it:\n{failure}", pytrace=False)

    return run


def _machine(config: pytest.Config) -> dict[str, Any]:
    """Return facts about the machine, and nothing that says where and by whom it was run."""
    device = _device(config)
    facts: dict[str, Any] = {
        "device": fact("the name of the device", lambda: device_name(device)) or "unknown",
        "cpu_count": os.cpu_count(),
        "threads": config.option.threads,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "vitadapter_fast": vitadapter_fast.__version__,
        "cpu_isa": fact("the instruction set", lambda: checks.facts().get("CPU instruction set")),
        "scale": config.option.scale,
    }
    return facts | ({"cuda": torch.version.cuda} if device == "cuda" else {})


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: Any) -> None:
    """Say the same in what pytest-benchmark is asked to save."""
    machine_info.clear()
    machine_info.update(config.stash[_RESULTS].machine)


def pytest_benchmark_update_commit_info(config: pytest.Config, commit_info: Any) -> None:
    """Keep the commit alone."""
    commit = commit_info.get("id")
    commit_info.clear()
    commit_info.update(
        id=commit, time=None, author_time=None, project="vitadapter_fast", dirty=None
    )
