# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""What the CUDA path costs the host, on the CPU: no GPU is asked for, and no kernel runs.

python benchmarks/bench_overhead.py

At batch 1 a GPU waits for Python. Timed is the thread's own time of a model as deep as S with few
channels, against the original's composition with torch's fused attention, and of single calls of
operators against their backend alone. Read ratios and differences: torch's kernels run here, on a
few tokens, where a GPU would be sent launches, and ours cost nothing at all (see cuda_path.py).
"""

import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(_HERE), str(_HERE.parent / "tests" / "helpers")]

from cases import AttnCase, make_inputs  # noqa: E402
from cuda_path import cuda_path  # noqa: E402
from plain import Plain  # noqa: E402

from vitadapter_fast import ViTAdapter, ops  # noqa: E402
from vitadapter_fast.presets import PRESETS  # noqa: E402

Run = Callable[[], object]
Note = Callable[[str], None]
MODES = ("no gradients", "autocast", "recording")
MODEL_MODES = (*MODES, "forward+backward")
_HW, _GRIDS = (4, 4), ((8, 8), (4, 4), (2, 2))
# Heads of 32 channels: what the specialized kernels take, forward and backward.
_CHANNELS, _HEADS = 64, 2


@dataclass(frozen=True)
class Overhead:
    """Times of one thread.

    Attributes:
        what: A model or an operator.
        mode: One of ``MODEL_MODES``.
        ours_s: The shortest call.
        other_s: Of the composition; for an operator, of its backend alone.
        ratio: Ours over the other, as ``in_turn`` has it.
        launches: Kernels of ours that the call launches.
    """

    what: str
    mode: str
    ours_s: float
    other_s: float
    ratio: float
    launches: int

    def __str__(self) -> str:
        """Return a line of a table."""
        if self.what.startswith("model"):
            ours, other = 1e3 * self.ours_s, 1e3 * self.other_s
            text = f"{ours:7.2f} ms, plain + SDPA {other:6.2f} ms: {self.ratio:.2f} times"
        else:
            ours, other = 1e6 * self.ours_s, 1e6 * self.other_s
            text = f"{ours:7.1f} us, its backend {other:6.1f} us: {ours - other:+.1f} us"
        return f"{self.what:20} {self.mode:17} {text}"


def model(seconds: float = 1.5, modes: Sequence[str] = MODEL_MODES) -> Iterator[Overhead]:
    """Time S with few channels on an image of 64 x 64 against the composition with SDPA.

    Args:
        seconds: For each mode, about.
        modes: Of ``MODEL_MODES``.
    """
    small = {"embed_dim": _CHANNELS, "num_heads": _HEADS, "deform_num_heads": _HEADS}
    kwargs = PRESETS["s"].model_kwargs() | small | {"drop_path_rate": 0.0}
    adapter = ViTAdapter(**kwargs, conv_inplane=8)
    image = torch.randn(1, 3, 64, 64)
    for mode in modes:
        is_training = mode == "forward+backward"

        def call(module: Any, is_training: bool = is_training) -> None:
            maps = module(image)
            if is_training:
                torch.autograd.backward(maps, [torch.ones_like(part) for part in maps])

        ours = partial(call, adapter.train(is_training))
        other = partial(call, Plain(adapter, has_sdpa=True).train(is_training))
        with _quiet(mode), cuda_path() as launched:
            ours()
            launches = launched.total()
            times = in_turn(ours, other, seconds)
        yield Overhead("model, depth of S", mode, *times, launches)


def operators(seconds: float = 0.15, modes: Sequence[str] = MODES) -> Iterator[Overhead]:
    """Time a call of each operator against its backend, which is called with what it was given.

    Args:
        seconds: For each operator and mode, about.
        modes: Of ``MODES``.
    """
    for mode in modes:
        for name, (run, tensors) in _operators().items():
            leaves = [each.detach().requires_grad_(mode == "recording") for each in tensors]
            ours = partial(run, *leaves)
            with _quiet(mode), cuda_path() as launched:
                backend = _backend_call(name, ours)
                launches = launched.total()
                times = in_turn(ours, backend, seconds)
            yield Overhead(name, mode, *times, launches)


def _operators() -> dict[str, tuple[Callable[..., Tensor], list[Tensor]]]:
    """Return a call of each operator of the CUDA path, and its tensors."""
    case = AttnCase("", 1, _HEADS, _CHANNELS // _HEADS, 4, _GRIDS, (_HW,))
    grid, classic = (make_inputs(each, dtype=torch.float32) for each in (case, case.classic()))
    image, tokens = torch.randn(1, 3, 64, 64), torch.randn(1, 84, _CHANNELS)
    kernel = [torch.randn(_CHANNELS, 3, 16, 16), torch.randn(_CHANNELS), torch.randn(16, _CHANNELS)]
    conv = [tokens, torch.randn(_CHANNELS, 1, 3, 3), torch.randn(_CHANNELS)]
    qkv = torch.randn(1, 16, 3, _HEADS, _CHANNELS // _HEADS)
    return {
        "ms_deform_attn_grid": (
            lambda value, points, logits: ops.ms_deform_attn_grid(
                value, _GRIDS, (_HW,), points, logits
            ),
            list(grid.tensors()),
        ),
        "ms_deform_attn": (
            lambda value, points, weights: ops.ms_deform_attn(value, _GRIDS, points, weights),
            list(classic.tensors()),
        ),
        "patch_embed": (lambda *args: ops.patch_embed(*args, _HW), [image, *kernel]),
        "dwconv_gelu": (
            lambda tokens, weight, bias: ops.dwconv_gelu(tokens, _GRIDS, weight, bias),
            conv,
        ),
        "window_attention": (lambda qkv: ops.window_attention(qkv, _HW, 3), [qkv]),
    }


def _backend_call(name: str, run: Run) -> Run:
    """Return a call of the backend alone, as ``run`` of operator ``name`` makes it."""
    package = sys.modules[f"vitadapter_fast.ops.{name.removesuffix('_grid')}"]
    seen: list[Run] = []
    with ExitStack() as stack:
        for module in package.BACKENDS:
            forward = module.forward

            def watched(*args: Any, forward: Any = forward) -> Any:
                seen.append(lambda: forward(*args))
                return forward(*args)

            module.forward = watched
            stack.callback(setattr, module, "forward", forward)
        run()
    (call,) = seen
    return call


@contextmanager
def _quiet(mode: str) -> Iterator[None]:
    """Set a mode; one thread, whose time is then all there is, and nothing collected in between."""
    threads, was_enabled = torch.get_num_threads(), gc.isenabled()
    torch.set_num_threads(1)
    gc.collect()
    gc.disable()
    try:
        with (
            torch.set_grad_enabled(mode in ("recording", "forward+backward")),
            torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"),
        ):
            yield
    finally:
        torch.set_num_threads(threads)
        if was_enabled:
            gc.enable()


def in_turn(ours: Run, other: Run, seconds: float) -> tuple[float, float, float]:
    """Call two in turn for about so many seconds of the thread.

    Returns:
        The shortest time of a call of each, in seconds: what else the machine does only adds. And
        the median of the ratios, ours over the other, of times side by side: how fast the machine
        is at the moment is in both.
    """
    runs = (ours, other)
    for run in (*runs, *runs):
        run()
    start = time.thread_time()
    for run in runs:
        run()
    both = max(time.thread_time() - start, 1e-6)
    calls = max(1, int(1e-3 / both))  # a millisecond for each pair of readings of the clock
    times = []
    for _ in range(max(5, int(seconds / (calls * both)))):
        pair = []
        for run in runs:
            start = time.thread_time()
            for _ in range(calls):
                run()
            pair.append((time.thread_time() - start) / calls)
        times.append(pair)
    ratio = statistics.median(one / two for one, two in times)
    return min(one for one, _ in times), min(two for _, two in times), ratio


def yardstick(seconds: float = 0.1) -> str:
    """Return a line about how fast this thread is now: read differences in us with it in mind."""
    numbers = torch.ones(4)
    with _quiet("no gradients"):
        add_s, _, _ = in_turn(lambda: torch.add(numbers, numbers), lambda: None, seconds)
    return f"torch.add of 4 numbers takes {1e6 * add_s:.2f} us here"


def test_model(note: Note, scale: str) -> None:
    for line in model(*([0.0, MODES[:1]] if scale == "smoke" else [])):
        note(str(line))


def test_operators(note: Note, scale: str) -> None:
    note(yardstick())
    for line in operators(*([0.0, MODES[:1]] if scale == "smoke" else [])):
        note(str(line))


def main() -> None:
    """Print both tables."""
    sys.stdout.write(f"{yardstick()}\n")
    for find in (model, operators):
        for line in find():
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
