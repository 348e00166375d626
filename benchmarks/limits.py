# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""What the device can do at best, measured in the same run: matrix products, copies."""

import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from vitadapter_fast.native import gemm


def device_name(device: str) -> str:
    """Return the name of the GPU, or the processor's as the system gives it.

    With its family, where it has one: virtual machines hide the model in names like "AMD EPYC".
    """
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    pairs = [line.partition(":") for line in lines]
    found = {key.strip(): value.strip() for key, _, value in reversed(pairs)}
    family = f", family {found['cpu family']}" if "cpu family" in found else ""
    return f"{found.get('model name', platform.processor())}{family} ({platform.machine()})"


def measure(device: str, dtype: torch.dtype) -> dict[str, float]:
    """Return FLOP/s of the fastest matrix product here, and bytes/s of a copy (read + written)."""
    side = 8192 if device == "cuda" else 1536
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    products: list[Callable[[], Tensor]] = [lambda: left @ right]
    products.append(lambda: gemm.linear(left, right))
    seconds = min(_fastest(product, device) for product in products)
    # Far larger than any cache.
    source = torch.empty(2**30 if device == "cuda" else 2**28, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copying = _fastest(lambda: target.copy_(source), device)
    return {"flops_per_s": 2 * side**3 / seconds, "bytes_per_s": 2 * source.nbytes / copying}


def _fastest(run: Callable[[], object], device: str, calls: int = 7) -> float:
    times = []
    for _ in range(calls):
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)


def share(
    seconds: float, flops: int, num_bytes: int, limits: dict[str, float], kind: str
) -> float | None:
    """Return how much of the limit a time is, in (0, 1]; None if there is nothing to count.

    Args:
        seconds: Time of a call.
        flops: Of the call.
        num_bytes: What the call must move.
        limits: As ``measure`` returns.
        kind: "larger": arithmetic or memory, whichever takes longer; "sum": one after the other.
    """
    parts = (flops / limits["flops_per_s"], num_bytes / limits["bytes_per_s"])
    least = max(parts) if kind == "larger" else sum(parts)
    return least / seconds if least > 0 else None
