# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A process of its own for every contender: one's memory and threads are not another's.

The benchmark asks (check, run, measure); the process answers with what it measured itself, so that
the way between them is in no time.
"""

import ctypes
import gc
import multiprocessing
import os
import re
import signal
import statistics
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

PASSES = ("forward", "forward+backward")
_GRAPHS = 4
_REPLAYS, _REPLAYS_S = (3, 25), 0.4  # time that replays take together, if their number allows
_OUT_OF_MEMORY = re.compile(
    # torch's, cuBLAS's and cuDNN's, the driver's, Python's and torch's on the CPU
    r"OutOfMemoryError|out of memory|ALLOC_FAILED|MemoryError|can't allocate memory"
)
# Forked from a process that has imported torch and done nothing with it: a start takes 0.1 s.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torch", "vitadapter_fast", "workloads"])


@dataclass(frozen=True)
class Spec:
    """What one process runs.

    Attributes:
        kind: Key of ``workloads.BUILDERS``.
        contender: Name of an implementation.
        shape: Arguments of the builder.
        dtype: Name of a torch dtype.
        device: "cpu" or "cuda".
        threads: Threads of torch on the CPU.
    """

    kind: str
    contender: str
    shape: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    device: str = "cpu"
    threads: int = 0


@dataclass
class Workload:
    """What a builder returns.

    Attributes:
        version: Of the implementation.
        check: Raises AssertionError unless results (and gradients) are right.
        run: Calls one pass on the inputs of an index: ``run(name of the pass, index)``.
        images: Images in one call.
        flops: By pass.
        bytes_moved: By pass; what cannot be avoided.
        limit: "larger" of the times for arithmetic and memory, or their "sum", for many steps in a
            row.
        inputs: How many different inputs come in turn by index.
        has_own_memory: Whether what the process takes is the contender's.
    """

    version: str
    check: Callable[[], None]
    run: Callable[[str, int], object]
    images: int
    flops: dict[str, int]
    bytes_moved: dict[str, int]
    limit: str = "larger"
    inputs: int = 1
    has_own_memory: bool = True


class Failed(Exception):
    """The process could not do what it was asked; the text is its traceback."""

    @property
    def is_out_of_memory(self) -> bool:
        """Whether it wanted more memory than there is."""
        return _OUT_OF_MEMORY.search(str(self)) is not None

    @property
    def reason(self) -> str:
        """Return it in a line."""
        if self.is_out_of_memory:
            return "out of memory"
        return str(self).strip().splitlines()[-1]


class Worker:
    """The benchmark's end of a process."""

    def __init__(self, spec: Spec, patience_s: float | None = None) -> None:
        """Start the process; its first answer says whether building went well.

        Args:
            spec: What it runs.
            patience_s: For an answer, or None to wait for as long as it takes.
        """
        self.spec, self._patience_s = spec, patience_s
        self._pipe, other = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=_serve, args=(other, spec), daemon=True)
        self._process.start()
        other.close()

    def ask(self, question: str, *args: Any) -> Any:
        """Return the answer.

        Raises:
            Failed: The process raised an exception, died, or was ended for taking too long.
        """
        try:
            self._pipe.send((question, args))
            if not self._pipe.poll(self._patience_s):
                self._process.kill()
                raise Failed(f"{self.spec}: took longer than {self._patience_s:.0f} s")
            is_fine, answer = self._pipe.recv()
        except (EOFError, OSError) as error:
            self._process.join(10)
            raise Failed(f"{self.spec}: died, exit code {self._process.exitcode}") from error
        if not is_fine:
            raise Failed(answer)
        return answer

    def stop(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()


def _serve(pipe: Connection, spec: Spec) -> None:
    import workloads

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the asker decides
    if spec.threads:
        torch.set_num_threads(spec.threads)
    try:
        workload = workloads.build(spec)
    except BaseException:
        error = traceback.format_exc()
        pipe.recv()
        pipe.send((False, error))
        return
    session = _Session(spec, workload)
    while True:
        try:
            question, args = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((True, getattr(session, question)(*args)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))


class _Session:
    """The questions, a method each."""

    def __init__(self, spec: Spec, workload: Workload) -> None:
        self.spec, self.workload, self.calls = spec, workload, 0
        self.is_cuda = spec.device == "cuda"

    def facts(self) -> dict[str, Any]:
        work = self.workload
        return {
            "version": work.version,
            "images": work.images,
            "flops": work.flops,
            "bytes": work.bytes_moved,
            "limit": work.limit,
        }

    def check(self) -> None:
        self.workload.check()

    def result(self) -> Any:
        return self.workload.run(PASSES[0], 0)

    def run(self, name: str) -> float:
        """Return seconds of one call, until its results are there."""
        self.calls += 1
        self._wait()
        start = time.perf_counter()
        result = self.workload.run(name, self.calls)
        self._wait()
        seconds = time.perf_counter() - start
        del result
        return seconds

    def memory(self, name: str) -> dict[str, int]:
        """Return bytes: peak of one call (process or allocator), and kept for backward.

        The second not of compiled contenders: hooks could have them compiled anew.
        """
        if not self.workload.has_own_memory:
            return {}
        if self.spec.contender.endswith("compiled"):
            self._reset_peak()
            self.run(name)
            return {"peak_bytes": self._peak()}
        saved: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            if not isinstance(tensor, torch.nn.Parameter):
                storage = tensor.untyped_storage()
                saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        self._reset_peak()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            result = self.workload.run(name, 0)
            self._wait()
        del result
        return {"peak_bytes": self._peak(), "saved_bytes": sum(saved.values())}

    def clock_mhz(self) -> float | None:
        """Return the device's clock now, right after its work; None where nothing measures it."""
        with suppress(Exception):  # needs nvidia-ml-py, and a driver that lets it ask
            return float(torch.cuda.clock_rate()) if self.is_cuda else None
        return None

    def graph_ms(self, name: str) -> dict[str, Any]:
        """Return device time of a call: of captured graphs, replayed.

        Inputs come in turn, a graph for each. After a failed capture torch stays in it, and no
        time of this process is one: ``is_spoiled``.
        """
        if not self.is_cuda:
            return {"device_ms": None}
        try:
            graphs, kept = self._captured(name)
        except Exception as error:
            failed = Failed(f"{type(error).__name__}: {error}".strip())
            return {"device_ms": None, "not_captured": failed.reason, "is_spoiled": True}
        times: list[float] = []
        while len(times) < _REPLAYS[0] or (
            len(times) < _REPLAYS[1] and sum(times) < 1e3 * _REPLAYS_S
        ):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graphs[len(times) % len(graphs)].replay()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
        del kept
        low, middle, high = statistics.quantiles(times, n=4)
        return {"device_ms": middle, "device_iqr_ms": high - low}

    def _captured(self, name: str) -> tuple[list[Any], list[object]]:
        """Return graphs of a call, and what they write to."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for index in range(3):
                self.workload.run(name, index)
        torch.cuda.current_stream().wait_stream(stream)
        graphs: list[Any] = []
        kept: list[object] = []
        for index in range(min(self.workload.inputs, _GRAPHS)):
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=graphs[0].pool() if graphs else None):
                kept.append(self.workload.run(name, index))
            graphs.append(graph)
        return graphs, kept

    def _wait(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize()

    def _reset_peak(self) -> None:
        if self.is_cuda:
            torch.cuda.reset_peak_memory_stats()
            return
        gc.collect()
        with suppress(OSError, AttributeError):  # not glibc
            ctypes.CDLL(None).malloc_trim(0)  # what the calls before left in the heap is not ours
        with suppress(OSError):  # not Linux, or not allowed: the peak is that of the whole process
            Path("/proc/self/clear_refs").write_text("5")

    def _peak(self) -> int:
        if self.is_cuda:
            return torch.cuda.max_memory_allocated()
        for line in Path(f"/proc/{os.getpid()}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
        return 0
