# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A row in; checked and timed in its contender's process, facts about it out."""

import logging
import math
import time
from typing import Any

import limits as bounds
from problems import OURS
from results import Results
from worker import Failed, Spec, Worker
from workloads import Row

_log = logging.getLogger("vitadapter_fast.benchmarks")
_FLOOR_S, _ROUNDS = 0.4, (3, 25)  # time that rounds take together, if their number allows
# With a process on a GPU, for one answer: a check compiles a backbone's forward and training step.
_PATIENCE_S, _LEAST_PATIENCE_S = 480.0, 60.0


class Clock:
    """Seconds that processes measured; what pytest-benchmark reads instead of its own clock."""

    def __init__(self) -> None:
        """Start at zero."""
        self.total = 0.0

    def __call__(self) -> float:
        """Return the sum so far."""
        return self.total


class Session:
    """One run of the benchmarks."""

    def __init__(
        self, device: str, threads: int, results: Results, minutes: float | None = None
    ) -> None:
        """Start without a process.

        Args:
            device: "cpu" or "cuda".
            threads: On the CPU, where a row does not say.
            results: Where rows go.
            minutes: After which nothing new is started; None for no end.
        """
        self.device, self.threads, self.results = device, threads, results
        self._minutes, self._start = minutes, time.monotonic()
        self._clock = Clock()
        self._held: Worker | None = None
        # By the text of a Spec, which holds a dict.
        self._failed: dict[str, Failed] = {}
        self._checked: set[str] = set()
        self._limits: dict[str, dict[str, float]] = {}

    def is_over(self) -> bool:
        """Return whether the time is used up."""
        return self._left_s() <= 0

    def _left_s(self) -> float:
        if self._minutes is None:
            return math.inf
        return self._start + 60 * self._minutes - time.monotonic()

    def drop(self) -> None:
        """End the process at hand, if there is one."""
        if self._held is not None:
            self._held.stop()
        self._held = None

    def measure(self, row: Row, benchmark: Any, name: str) -> None:
        """Check and time a row.

        Raises:
            Failed: It has no time; the process is gone.
        """
        try:
            self._measure(row, benchmark, name)
        except Failed:
            self.drop()
            raise

    def _measure(self, row: Row, benchmark: Any, name: str) -> None:
        worker = self._worker_for(row.spec)
        first = worker.ask("run", row.passes)
        facts, memory = worker.ask("facts"), worker.ask("memory", row.passes)
        least = 1 if first > 4 else _ROUNDS[0]  # seconds: g on two cores
        rounds = int(min(max(_FLOOR_S / first, least), _ROUNDS[1]))

        def call() -> None:
            self._clock.total += worker.ask("run", row.passes)

        benchmark.group = f"{row.spec.kind} {row.shape} {row.passes}"
        benchmark._timer = self._clock
        benchmark.pedantic(call, rounds=rounds)
        if benchmark.disabled:  # by --benchmark-disable or xdist: checked and run, not timed
            return
        stats = benchmark.stats.stats.as_dict()
        clock_mhz = worker.ask("clock_mhz")
        graph = self._graph(worker, row.passes)
        seconds, device_ms = stats["median"], graph["device_ms"]
        # Of one clock on one device: a share of Python's time beside shares of graphs says nothing.
        best = seconds if self.device == "cpu" else device_ms and device_ms / 1e3
        benchmark.extra_info.update(
            kind=row.spec.kind,
            shape=row.shape,
            passes=row.passes,
            contender=row.spec.contender,
            version=facts["version"],
            dtype=row.spec.dtype,
            threads=worker.spec.threads,
            images_per_s=facts["images"] / seconds,
            **graph,
            flops=facts["flops"].get(row.passes),
            bytes=facts["bytes"].get(row.passes),
            share_of_limit=self._share(row, facts, best),
            **memory,
        )
        if clock_mhz is not None:
            benchmark.extra_info["clock_mhz"] = clock_mhz
        self.results.add(name, stats, dict(benchmark.extra_info))

    def _graph(self, worker: Worker, passes: str) -> dict[str, Any]:
        """Return the device's time; comes last, because a failed capture ends the process."""
        try:
            graph: dict[str, Any] = worker.ask("graph_ms", passes)
        except Failed as failure:
            graph = {"device_ms": None, "not_captured": failure.reason, "is_spoiled": True}
        if graph.pop("is_spoiled", False):
            self.drop()
        return graph

    def _worker_for(self, spec: Spec) -> Worker:
        """Return the process of a contender, checked once; the one before it ends."""
        spec = Spec(**{**spec.__dict__, "threads": spec.threads or self.threads})
        key = repr(spec)
        if key in self._failed:
            raise self._failed[key]
        if self._held is None or self._held.spec != spec:
            self.drop()
            patience_s = min(_PATIENCE_S, max(_LEAST_PATIENCE_S, self._left_s()))
            self._held = Worker(spec, patience_s if self.device == "cuda" else None)
            try:
                # A process that follows a spoiled one only has to say that it could be built.
                self._held.ask("facts" if key in self._checked else "check")
                if self.device == "cpu" and key not in self._checked:
                    # A check leaves up to 100 MB in its process, which are not the contender's.
                    self._held.stop()
                    self._held = Worker(spec)
                    self._held.ask("facts")
            except Failed as failure:
                self._failed[key] = failure
                raise
            self._checked.add(key)
        return self._held

    def _share(self, row: Row, facts: dict[str, Any], seconds: float | None) -> float | None:
        """Return how much of the device's limit a time is, None where it is not known."""
        limits = self._limits.get(row.spec.dtype)
        flops, moved = (facts[key].get(row.passes, 0) for key in ("flops", "bytes"))
        if not limits or seconds is None:
            return None
        return bounds.share(seconds, flops, moved, limits, facts["limit"])

    def find_limits(self, dtypes: tuple[str, ...]) -> None:
        """Measure what the device can do, while nothing else runs; a failure costs only shares."""
        for dtype in dtypes:
            spec = Spec("limits", "device", {}, dtype, self.device, self.threads)
            worker = Worker(spec, _PATIENCE_S)
            try:
                self._limits[dtype] = worker.ask("result")
            except Failed as failure:
                _log.warning("unknown: the limits in %s (%s)", dtype, failure.reason)
            finally:
                worker.stop()
        self.results.machine["limits"] = self._limits


def verdict(row: Row, failure: Failed) -> str:
    """Return "skipped" or "failed", as a row of ours has to be where the machine can hold it."""
    is_ours = row.spec.contender.startswith(OURS)
    is_excused = failure.is_out_of_memory or "Unavailable" in str(failure)
    return "failed" if is_ours and not is_excused else "skipped"
