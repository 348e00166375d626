# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A process that lets a training step run out of memory at many moments; test_faults.py starts it.

It checks that nothing is harmed, and prints the phase, type and message of every failure as JSON.
"""

import ctypes
import json
import resource
import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch
from tiny import WINDOWED
from torch import Tensor

from vitadapter_fast import ViTAdapter, ms_deform_attn
from vitadapter_fast.native import extension
from vitadapter_fast.ops import _backends

_M_MMAP_THRESHOLD = -3

# Memory goes back to the system at once, so that a limit is felt.
ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 8192)
torch.manual_seed(0)
torch.set_num_threads(1)
model = ViTAdapter(**WINDOWED).train()
image = torch.rand(1, 3, 160, 160)
value = torch.rand(1, 128 * 128, 1, 64, requires_grad=True)
points, weights = torch.rand(1, 1, 1, 1, 4, 2), torch.rand(1, 1, 1, 1, 4)
phase = ""


def differentiate(outputs: Callable[[], list[Tensor]], leaves: Iterable[Tensor]) -> list[Tensor]:
    global phase
    for leaf in leaves:
        leaf.grad = None
    phase = "forward"
    loss = torch.stack([each.square().mean() for each in outputs()]).sum()
    phase = "backward"
    loss.backward()
    return [leaf.grad for leaf in leaves if leaf.grad is not None]


def step() -> list[Tensor]:
    return differentiate(lambda: model(image), list(model.parameters()))


def sample() -> list[Tensor]:
    """An operator whose kernels keep 4 MB beside their outputs: a copy of the value."""
    return differentiate(lambda: [ms_deform_attn(value, [(128, 128)], points, weights)], [value])


def limit(num_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (num_bytes, resource.RLIM_INFINITY))


def attempt(run: Callable[[], object]) -> tuple[str, str, str] | None:
    try:
        run()
    except (MemoryError, RuntimeError) as error:
        return phase, type(error).__name__, str(error)
    finally:
        limit(resource.RLIM_INFINITY)
    return None


def starved(function: Callable[..., Any], is_chosen: Callable[..., bool], ends: bool) -> Any:
    """The function, in whose chosen calls, or from them on, nothing more can be allocated."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if is_chosen(*args):
            limit(0)
        try:
            return function(*args, **kwargs)
        finally:
            if ends:
                limit(resource.RLIM_INFINITY)

    return call


def main() -> None:
    step()
    state, kept = [each.clone() for each in model.parameters()], image.clone()
    wanted, sampled = step(), sample()
    outcomes = []

    # What torch allocates: from the n-th time on that an operator asks for its backend.
    requested = _backends.requested
    for n in (1, 11, 26, 33, 41, 52):
        calls = iter(range(1000))
        _backends.requested = starved(requested, lambda *args: next(calls) == n, ends=False)  # noqa: B023
        outcomes.append(attempt(step))
    _backends.requested = requested

    # What a kernel allocates beside its outputs.
    launch = extension.launch
    for kernel in ("ms_deform_attn_forward_cpu", "ms_deform_attn_backward_cpu"):
        extension.launch = starved(launch, lambda name: name == kernel, ends=True)  # noqa: B023
        outcomes.append(attempt(sample))
    extension.launch = launch

    assert torch.equal(image, kept)
    assert all(map(torch.equal, state, model.parameters()))
    assert all(map(torch.equal, wanted, step()))
    assert all(map(torch.equal, sampled, sample()))
    sys.stdout.write(json.dumps(outcomes))


if __name__ == "__main__":
    main()
