# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A process that lets a training step run out of memory at many moments; test_faults.py starts it.

It checks that nothing is harmed, and prints the phase, type and message of every failure as JSON.
"""

import ctypes
import json
import resource
import sys
from collections.abc import Callable
from typing import Any

import torch
from tiny import WINDOWED
from torch import Tensor

from vitadapter_fast import ViTAdapter
from vitadapter_fast.ops import _backends, _native

_M_MMAP_THRESHOLD = -3

# Memory goes back to the system at once, so that a limit is felt.
ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 8192)
torch.manual_seed(0)
torch.set_num_threads(1)
model = ViTAdapter(**WINDOWED).train()
image = torch.rand(1, 3, 160, 160)
phase = ""


def step() -> list[Tensor]:
    global phase
    model.zero_grad()
    phase = "forward"
    loss = torch.stack([each.square().mean() for each in model(image)]).sum()
    phase = "backward"
    loss.backward()
    return [each.grad for each in model.parameters() if each.grad is not None]


def limit(num_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (num_bytes, resource.RLIM_INFINITY))


def attempt() -> tuple[str, str, str] | None:
    try:
        step()
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
    wanted = step()
    outcomes = []

    # What torch allocates: from the n-th time on that an operator asks for its backend.
    requested = _backends.requested
    for n in (1, 11, 26, 33, 41, 52):
        calls = iter(range(1000))
        _backends.requested = starved(requested, lambda *args: next(calls) == n, ends=False)  # noqa: B023
        outcomes.append(attempt())
    _backends.requested = requested

    # What a kernel allocates beside its outputs.
    launch = _native.launch
    for kernel in ("ms_deform_attn_forward_cpu", "ms_deform_attn_backward_cpu"):
        _native.launch = starved(launch, lambda name: name == kernel, ends=True)  # noqa: B023
        outcomes.append(attempt())
    _native.launch = launch

    assert torch.equal(image, kept)
    assert all(map(torch.equal, state, model.parameters()))
    assert all(map(torch.equal, wanted, step()))
    sys.stdout.write(json.dumps(outcomes))


if __name__ == "__main__":
    main()
