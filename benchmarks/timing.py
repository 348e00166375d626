# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Time contestants in turn, so that a machine whose speed drifts treats them alike."""

import time
from collections.abc import Callable
from statistics import median

Run = Callable[[], object]


def interleaved_ms(
    runs: dict[str, Run], *, rounds: int = 9, floor_s: float = 0.05
) -> dict[str, float]:
    """Return each contestant's median time per call, in milliseconds.

    Every round calls each contestant long enough (``floor_s``) to be measured, one after the other.

    Args:
        runs: What to time, by name. Each is called once beforehand.
        rounds: Rounds that count.
        floor_s: Shortest time that one contestant runs in one round, in seconds.
    """
    repeats = {}
    for name, run in runs.items():
        run()
        start = time.perf_counter()
        run()
        repeats[name] = max(1, round(floor_s / (time.perf_counter() - start)))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            for _ in range(repeats[name]):
                run()
            times[name].append((time.perf_counter() - start) / repeats[name])
    return {name: 1e3 * median(values) for name, values in times.items()}
