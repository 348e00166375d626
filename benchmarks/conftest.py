# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""``pytest benchmarks/``: every contender in a process of its own, checked, then timed."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).resolve().parents[1] / "tests")]
# For the processes, which import by name what this one does.
os.environ["PYTHONPATH"] = os.pathsep.join([*sys.path[:2], os.environ.get("PYTHONPATH", "")])

import limits as bounds  # noqa: E402
from worker import Failed, Spec, Worker  # noqa: E402

import vitadapter_fast  # noqa: E402
from vitadapter_fast import info  # noqa: E402

_NOTES = pytest.StashKey[list[str]]()
_LIMITS = pytest.StashKey[dict[str, dict[str, float]]]()
SCALES = ("smoke", "cpu", "cpu_sizes", "gpu")
OURS = "vitadapter_fast"
_FLOOR_S, _ROUNDS = 0.4, (3, 25)  # time that rounds take together, if their number allows


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("vitadapter_fast")
    group.addoption(
        "--scale", choices=SCALES, help="shapes; default: gpu if there is one, else cpu"
    )
    group.addoption("--original", type=Path, help="checkout of github.com/czczup/ViT-Adapter")
    group.addoption("--compiled", action="store_true", help="also torch.compile of the composition")
    group.addoption("--threads", type=int, default=torch.get_num_threads(), help="on the CPU")


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("--scale"):
        config.option.scale = "gpu" if torch.cuda.is_available() else "cpu"
    if config.getoption("--original"):
        os.environ["VITADAPTER_ORIGINAL"] = str(config.getoption("--original").resolve())
    os.environ["VITADAPTER_COMPILED"] = str(int(config.getoption("--compiled")))
    config.option.benchmark_columns = ["median", "iqr", "rounds"]
    config.option.benchmark_sort = "name"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every row that ``cases(scale)`` of the file names, for each of its contenders and passes."""
    if "row" not in metafunc.fixturenames:
        return
    device = "cuda" if metafunc.config.getoption("--scale") == "gpu" else "cpu"
    rows = metafunc.module.cases(metafunc.config.getoption("--scale"), device)
    metafunc.parametrize("row", rows, ids=["-".join((row.spec.kind, *row.id)) for row in rows])


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> str:
    return "cuda" if pytestconfig.getoption("--scale") == "gpu" else "cpu"


@pytest.fixture(scope="session")
def scale(pytestconfig: pytest.Config) -> str:
    return str(pytestconfig.getoption("--scale"))


@pytest.fixture
def note(pytestconfig: pytest.Config) -> Callable[[str], None]:
    """Return a function that takes a line for the end of the run."""
    return pytestconfig.stash.setdefault(_NOTES, []).append


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print what the benchmarks noted."""
    if lines := config.stash.get(_NOTES, []):
        terminalreporter.section("measured in this process")
        for line in lines:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def workers() -> Iterator[dict[Spec, Worker]]:
    """Return the process of the contender at hand: both passes are its."""
    held: dict[str, Worker] = {}
    yield held  # type: ignore[misc]
    for worker in held.values():
        worker.stop()


@pytest.fixture(scope="session")
def limits(pytestconfig: pytest.Config, device: str) -> dict[str, dict[str, float]]:
    """Return what the device can do, by dtype."""
    found = {}
    for dtype in ("float32", *(["bfloat16"] if device == "cuda" else [])):
        threads = pytestconfig.getoption("--threads")
        worker = Worker(Spec("limits", "device", {}, dtype, device, threads))
        found[dtype] = worker.ask("result")
        worker.stop()
    pytestconfig.stash[_LIMITS] = found
    return found


class _Clock:
    """Seconds that processes measured; what pytest-benchmark reads instead of its own clock."""

    def __init__(self) -> None:
        self.total = 0.0

    def __call__(self) -> float:
        return self.total


CLOCK = _Clock()


@pytest.fixture
def timed(
    request: pytest.FixtureRequest,
    benchmark: Any,
    workers: dict[str, Worker],
    limits: dict[str, dict[str, float]],
    device: str,
) -> Any:
    """Return a function that checks and times a row and notes what is to be known about it."""

    def run(row: Any) -> None:
        worker = _worker_for(row, workers, request.config.getoption("--threads"))
        facts, memory = worker.ask("facts"), worker.ask("memory", row.passes)
        first = worker.ask("run", row.passes)
        least = 1 if first > 4 else _ROUNDS[0]  # seconds: g on two cores
        rounds = int(min(max(_FLOOR_S / first, least), _ROUNDS[1]))

        def call() -> None:
            CLOCK.total += worker.ask("run", row.passes)

        benchmark.group = f"{row.spec.kind} {row.shape} {row.passes}"
        benchmark._timer = CLOCK
        benchmark.pedantic(call, rounds=rounds)
        if benchmark.disabled:  # by --benchmark-disable or xdist: checked and run, not timed
            return
        seconds = benchmark.stats.stats.median
        device_ms = worker.ask("device_ms", row.passes)
        shared = bounds.share(
            seconds if device_ms is None else device_ms / 1e3,
            facts["flops"].get(row.passes, 0),
            facts["bytes"].get(row.passes, 0),
            limits[row.spec.dtype],
            facts["limit"],
        )
        benchmark.extra_info.update(
            kind=row.spec.kind,
            shape=row.shape,
            passes=row.passes,
            contender=row.spec.contender,
            version=facts["version"],
            dtype=row.spec.dtype,
            threads=worker.spec.threads,
            images_per_s=facts["images"] / seconds,
            device_ms=device_ms,
            flops=facts["flops"].get(row.passes),
            bytes=facts["bytes"].get(row.passes),
            share_of_limit=shared,
            **memory,
        )

    return run


def _worker_for(row: Any, workers: dict[str, Worker], threads: int) -> Worker:
    """Return the process of the row, checked; the one before it ends."""
    spec = Spec(**{**row.spec.__dict__, "threads": row.spec.threads or threads})
    held = workers.get("held")
    if held is None or held.spec != spec:
        if held is not None:
            workers.pop("held").stop()
        workers["held"] = held = Worker(spec)
        try:
            held.ask("check")
        except Failed as failure:
            workers.pop("held").stop()
            if "Unavailable" in str(failure) or spec.contender != OURS:
                pytest.skip(f"{spec.contender}: {str(failure).strip().splitlines()[-1]}")
            pytest.fail(f"{spec}: refused to time it:\n{failure}", pytrace=False)
    return held


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: Any) -> None:
    """Name the device, and drop what says where and by whom it was run."""
    device = "cuda" if config.getoption("--scale") == "gpu" else "cpu"
    python = machine_info["python_version"]
    machine_info.clear()
    machine_info.update(
        device=bounds.device_name(device),
        cpu_count=os.cpu_count(),
        threads=config.getoption("--threads"),
        python=python,
        torch=torch.__version__,
        vitadapter_fast=vitadapter_fast.__version__,
        cpu_isa=info.facts().get("CPU instruction set"),
        scale=config.getoption("--scale"),
    )
    if device == "cuda":
        machine_info["cuda"] = torch.version.cuda
        machine_info["clock_mhz"] = torch.cuda.clock_rate()


def pytest_benchmark_update_commit_info(config: pytest.Config, commit_info: Any) -> None:
    """Keep the commit alone."""
    commit = commit_info.get("id")
    commit_info.clear()
    commit_info.update(
        id=commit, time=None, author_time=None, project="vitadapter_fast", dirty=None
    )


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: Any, output_json: Any) -> None:
    """Keep medians and spread, not every round; add what the device can do."""
    output_json["machine_info"]["limits"] = config.stash.get(_LIMITS, {})
    for each in output_json["benchmarks"]:
        each["stats"].pop("data", None)
