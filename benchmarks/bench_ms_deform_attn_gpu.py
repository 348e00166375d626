# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Multi-scale deformable attention on a CUDA device: ours against every peer, in one run.

Prints tables and writes JSON. Every result is checked before it is timed; a peer whose result is
too far off, or that cannot run, is left out, and the reason is written down.

    python benchmarks/bench_ms_deform_attn_gpu.py [--batch 1 2] [--out FILE]
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from importlib import metadata
from itertools import pairwise
from operator import methodcaller
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from bench_ms_deform_attn import SPREAD, classic_inputs, step
from cases import AttnCase, AttnInputs, extractor, injector, make_inputs
from peers import Peer, Sizes, attention_peers
from tolerance import assert_close

from vitadapter_fast import __version__, info
from vitadapter_fast.ops import _native, _triton, ms_deform_attn
from vitadapter_fast.ops.ms_deform_attn import _value_gradient

DEVICE = "cuda"
SHAPES = [
    make(f"{model}@{image} {kind}", image, heads, channels)
    for model, image, heads, channels in (
        ("S", 512, 6, 64),
        ("B", 1024, 12, 32),
        ("L", 1024, 16, 32),
        ("g", 1024, 24, 32),
    )
    for kind, make in (("extractor", extractor), ("injector", injector))
]
DTYPES = [torch.bfloat16, torch.float32]
# How ours sums the gradient of the value: points per pixel above which records are taken, and
# whether the sums keep their order.
MODES = {"atomics": (float("inf"), False), "records": (0, False), "deterministic": (0, True)}
Calls = list[Callable[[], object]]


def ours() -> dict[str, str]:
    """Return {name in tables: backend} of our backends that run here."""
    reasons = {"cuda": _native.cuda_unavailable_reason(), "triton": _triton.unavailable_reason()}
    return {f"ours {name}": name for name, reason in reasons.items() if reason is None}


def classic(backend: str) -> Any:
    """Return the classic entry point on one backend."""
    return partial(ms_deform_attn, backend=backend)


@contextmanager
def summing(mode: str) -> Iterator[None]:
    """Make the backward of ours sum the gradient of the value in one way."""
    points_per_pixel, is_deterministic = MODES[mode]
    before = torch.are_deterministic_algorithms_enabled()
    with mock.patch.object(_value_gradient, "POINTS_PER_PIXEL", points_per_pixel):
        torch.use_deterministic_algorithms(is_deterministic)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)


@cache
def sizes(level_hw: Sizes) -> tuple[Tensor, Tensor]:
    """Return sizes and first tokens as peers take them; made once, because that waits."""
    shapes = torch.tensor(level_hw, device=DEVICE)
    return shapes, torch.cat((shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]))


def in_float32(run: Any) -> Any:
    """Return what autocast makes of an op without a 16-bit form; the casts belong to its time."""

    def cast(value: Tensor, level_hw: Sizes, locations: Tensor, weights: Tensor) -> Tensor:
        return run(value.float(), level_hw, locations, weights.float()).to(value.dtype)  # type: ignore[no-any-return]

    return cast


def peers() -> list[Peer]:
    """Return the implementations found here, each at the precision of ours."""
    grid_sample = attention_peers()[0]
    found = [replace(grid_sample, run=in_float32(grid_sample.run))]
    try:
        from torch_ms_deform_attn import ms_deform_attn as separate
    except ImportError:
        pass
    else:

        def run_separate(value: Tensor, hw: Sizes, locations: Tensor, weights: Tensor) -> Tensor:
            return separate(value, *sizes(hw), locations, weights)  # type: ignore[no-any-return]

        name = "torch-ms-deform-attn"
        found.append(Peer(name, metadata.version(name), in_float32(run_separate)))
    try:
        from deformops.registry import Backend, msda
    except ImportError:
        return found

    def run_deformops(
        value: Tensor, hw: Sizes, locations: Tensor, weights: Tensor, backend: Any
    ) -> Tensor:
        return msda(value, *sizes(hw), locations, weights, backend=backend)  # type: ignore[no-any-return]

    version = metadata.version("deformops")
    for backend in (Backend.TRITON, Backend.CUDA):
        name = f"deformops {backend.name.lower()}"
        found.append(Peer(name, version, partial(run_deformops, backend=backend)))
    return found


def results(run: Any, inputs: AttnInputs, cotangent: Tensor) -> Any:
    return step(run, inputs, cotangent)()


def require_right(
    peer: Peer, inputs: AttnInputs, cotangent: Tensor, wanted: Any, truth: Any
) -> None:
    """Raise if an output or gradient is further from float64 than it may be."""
    parts = zip(results(peer.run, inputs, cotangent), wanted, truth, strict=True)
    for index, (got, near, exact) in enumerate(parts):
        assert_close(got, near, exact, f"{peer.name}, {inputs.case.name}, result {index}")


def right_ones(
    contestants: list[Peer], inputs: AttnInputs, cotangent: Tensor, left_out: dict[str, str]
) -> list[Peer]:
    """Check ours in every mode, and return the peers that are right too."""
    wanted = results(classic("reference"), inputs, cotangent)
    truth = results(classic("reference"), inputs.to(torch.float64), cotangent.double())
    for name, backend in ours().items():
        for mode in MODES:
            with summing(mode):
                own = Peer(f"{name} by {mode}", "", classic(backend))
                require_right(own, inputs, cotangent, wanted, truth)
    right = []
    for peer in contestants:
        try:
            require_right(peer, inputs, cotangent, wanted, truth)
        except Exception as error:
            where = f"{peer.name}, {inputs.case.name}, {inputs.value.dtype}"
            left_out[where] = f"{type(error).__name__}: {error}"[:300]
        else:
            right.append(peer)
    return right


def bytes_of(*tensors: Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def copies_of(inputs: AttnInputs) -> list[AttnInputs]:
    """Return so many copies that the cache has lost the first when its turn comes again."""
    cache_bytes = torch.cuda.get_device_properties(DEVICE).L2_cache_size
    count = max(3, min(32, 2 + 2 * cache_bytes // bytes_of(*inputs.tensors())))
    return [inputs.map(torch.clone) for _ in range(count)]


def device_us(calls: Calls, *, rounds: int = 9) -> list[float]:
    """Return the device times of calls, in microseconds.

    The calls of a round are queued while the device is kept waiting, so that neither Python nor
    the driver is in the times, unless a call itself waits for the device.
    """
    for _ in range(3):
        start = perf_counter()
        for call in calls:
            call()
        queuing_ms = 1e3 * (perf_counter() - start)
        torch.cuda.synchronize()
    times = []
    for _ in range(rounds):
        torch.cuda._sleep(int((2 * queuing_ms + 1) * cycles_per_ms()))
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(len(calls) + 1)]
        marks[0].record()
        for call, mark in zip(calls, marks[1:], strict=True):
            call()
            mark.record()
        torch.cuda.synchronize()
        times += [1e3 * a.elapsed_time(b) for a, b in pairwise(marks)]
    return times


@cache
def cycles_per_ms() -> float:
    """Return how many cycles of the device's wait last a millisecond."""
    cycles = 50_000_000
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    torch.cuda._sleep(cycles)  # clocks rise
    marks[0].record()
    torch.cuda._sleep(cycles)
    marks[1].record()
    torch.cuda.synchronize()
    return float(cycles / marks[0].elapsed_time(marks[1]))


def copy_bytes_per_us() -> float:
    """Return the rate of a large copy, read and written bytes together."""
    size = min(2**30, torch.cuda.get_device_properties(DEVICE).total_memory // 8)
    source = torch.zeros(size, dtype=torch.uint8, device=DEVICE)
    to = torch.empty_like(source)
    return 2 * size / median(device_us([lambda: to.copy_(source)] * 3))


def forward_calls(run: Any, copies: list[AttnInputs]) -> Calls:
    return [partial(run, c.value, c.case.level_hw, c.points, c.weights) for c in copies]


def backward_calls(outputs: Any, copies: list[AttnInputs], cotangents: list[Tensor]) -> Calls:
    """Return the backward passes alone: ``outputs`` makes the graph of one copy."""
    calls: Calls = []
    for inputs, cotangent in zip(copies, cotangents, strict=True):
        leaves = inputs.requires_grad()
        calls.append(
            partial(
                torch.autograd.grad,
                outputs(leaves),
                leaves.tensors(),
                cotangent,
                retain_graph=True,
            )
        )
    return calls


def out_of(run: Any, inputs: AttnInputs) -> Tensor:
    return run(inputs.value, inputs.case.level_hw, inputs.points, inputs.weights)  # type: ignore[no-any-return]


def measure(
    case: AttnCase, dtype: torch.dtype, contestants: list[Peer], left_out: dict[str, str]
) -> dict[str, dict[str, float]]:
    """Return {pass: {contestant: median time in microseconds}} of one shape."""
    on_cpu = make_inputs(case, spread=SPREAD, dtype=torch.float32)
    grid = on_cpu.to(dtype).map(lambda tensor: tensor.to(DEVICE))
    plain = classic_inputs(on_cpu).to(dtype).map(lambda tensor: tensor.to(DEVICE))
    shape = (case.batch, case.num_queries, case.heads * case.channels)
    cotangent = torch.randn(shape, device=DEVICE).to(dtype)
    contestants = right_ones(contestants, plain, cotangent, left_out)
    grids, classics = copies_of(grid), copies_of(plain)
    count = min(len(grids), len(classics))
    grids, classics = grids[:count], classics[:count]
    cotangents = [cotangent.clone() for _ in range(count)]

    forward: dict[str, Any] = {}
    backward: dict[str, Any] = {}
    for name, backend in ours().items():
        run, run_grid = classic(backend), methodcaller("run", backend)
        forward[name] = partial(forward_calls, run, classics)
        forward[f"{name}, grid"] = lambda run=run_grid: [partial(run, inputs) for inputs in grids]
        for mode in MODES:
            backward[f"{name}, {mode}"] = (mode, partial(out_of, run), classics)
            backward[f"{name}, grid, {mode}"] = (mode, run_grid, grids)
    for peer in contestants:
        forward[peer.name] = partial(forward_calls, peer.run, classics)
        backward[peer.name] = ("atomics", partial(out_of, peer.run), classics)

    times: dict[str, dict[str, list[float]]] = {"forward": {}, "backward": {}}
    # In turn and twice, so that a clock that drifts treats contestants alike.
    for _ in range(2):
        for name, calls in forward.items():
            with torch.no_grad():
                times["forward"].setdefault(name, []).extend(device_us(calls()))
        for name, (mode, outputs, copies) in backward.items():
            with summing(mode):
                calls = backward_calls(outputs, copies, cotangents)
                times["backward"].setdefault(name, []).extend(device_us(calls))
            del calls
    return {kind: {n: median(t) for n, t in named.items()} for kind, named in times.items()}


def least_bytes(case: AttnCase, dtype: torch.dtype, kind: str, is_grid: bool) -> int:
    """Return the bytes that a pass has to read and write at least, each once."""
    weights = case.num_queries * case.heads * len(case.level_hw) * case.points
    value = case.num_tokens * case.heads * case.channels
    out = case.num_queries * case.heads * case.channels
    locations_size = dtype.itemsize if is_grid else 4
    read = (value + weights) * dtype.itemsize + 2 * weights * locations_size
    # Backward reads them and the gradient of the output, and writes a gradient of each.
    return case.batch * ((read if kind == "forward" else 2 * read) + out * dtype.itemsize)


def clocks() -> str:
    """Return clocks, power limit and driver as nvidia-smi tells them; empty without it."""
    if shutil.which("nvidia-smi") is None:
        return ""
    fields = "clocks.sm,clocks.max.sm,clocks.mem,power.limit,driver_version"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv", "-i", "0"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def table(rows: list[dict[str, Any]], kind: str, title: str) -> Table:
    """Return the times of one pass, with the share of the copy bandwidth."""
    result = Table(title=f"{title}: {kind}; us (share of copy bandwidth)")
    rows = [row for row in rows if row["pass"] == kind]
    names = list(dict.fromkeys(row["name"] for row in rows))
    for heading in ("shape", "batch", "dtype", *names):
        result.add_column(heading, justify="left" if heading == "shape" else "right")
    groups: dict[tuple[str, str, str], dict[str, str]] = {}
    for row in rows:
        key = (row["shape"], str(row["batch"]), row["dtype"])
        cell = f"{row['time_us']:.1f} ({row['copy_bandwidth_share']:.0%})"
        groups.setdefault(key, {})[row["name"]] = cell
    for key, cells in groups.items():
        result.add_row(*key, *[cells.get(name, "") for name in names])
    return result


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/<device>...json")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("bench_ms_deform_attn_gpu: needs a CUDA device")
    if (reason := _native.cuda_unavailable_reason()) is not None:
        sys.stderr.write(f"without the cuda backend: {reason}\n")
    # Filling fresh memory is for debugging, and would be timed.
    torch.utils.deterministic.fill_uninitialized_memory = False
    console = Console()
    contestants = peers()
    device = torch.cuda.get_device_name()
    bandwidth = copy_bytes_per_us()
    rows: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}
    todo = [(replace(c, batch=b), d) for c in SHAPES for b in args.batch for d in DTYPES]
    for case, dtype in track(todo, "measuring", console=console, transient=True):
        for kind, times in measure(case, dtype, contestants, left_out).items():
            for name, time_us in times.items():
                least = least_bytes(case, dtype, kind, ", grid" in name)
                share = least / time_us / bandwidth
                rows.append(
                    {"shape": case.name, "batch": case.batch, "dtype": dtype_name(dtype)}
                    | {"pass": kind, "name": name, "time_us": round(time_us, 2)}
                    | {"copy_bandwidth_share": round(share, 3)}
                )
        torch.cuda.empty_cache()
    wide = Console(width=max(console.width, 200))  # a column is a contestant: lines may wrap
    for kind in ("forward", "backward"):
        wide.print(table(rows, kind, device))
    for where, reason in left_out.items():
        console.print(f"left out: {where}: {reason}", markup=False, highlight=False)
    facts = {
        "device": device,
        "clocks": clocks(),
        "copy_gb_per_s": round(bandwidth / 1e3, 1),
        "spread_px": SPREAD,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": info.facts()["triton"],
        "nvcc": _native.build_info().get("cuda_compiler", ""),
        "versions": {"ours": __version__} | {peer.name: peer.version for peer in contestants},
        "left_out": left_out,
    }
    slug = re.sub(r"\W+", "_", device.lower()).strip("_")
    results_folder = Path(__file__).resolve().parent / "results"
    out = args.out or results_folder / f"{slug}_ms_deform_attn.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(facts | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
