# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The Python of the CUDA path on CPU tensors: every choice as on a GPU, and nothing launched.

Where the package chooses by a tensor's device it is told what CUDA would answer
(``tensors.device_type``). So a result is memory that nobody wrote, and a time is what it takes to
enqueue, without torch.cuda's own calls, the launcher in C++ and the driver.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any
from unittest import mock

import torch

from vitadapter_fast.native import cuda_device, extension, tensors
from vitadapter_fast.ops import _backends, _triton


class WrongPath(AssertionError):
    """A kernel of the CPU was called: a choice still sees where the tensors are."""


@contextmanager
def cuda_path() -> Iterator[Counter[str]]:
    """Let operators and model take their CUDA path on CPU tensors inside the block.

    Yields:
        How often each launcher or Triton kernel was called so far.
    """
    if (reason := _triton.unavailable_reason()) is not None:
        raise RuntimeError(f"the CUDA path has windowed attention in Triton: {reason}")
    launched: Counter[str] = Counter()

    def launch(name: str, **arguments: Any) -> None:
        if not name.endswith("_cuda"):
            raise WrongPath(f"{name} was called on the path of CUDA")
        launched[name] += 1

    def launch_triton(kernel: Any, **arguments: Any) -> None:
        launched[kernel.__name__] += 1

    # Cached, as are the functions that they replace.
    @cache
    def no_reason(device: torch.device | None = None) -> str | None:
        return None

    stubs: list[tuple[Any, str, Any]] = [
        (tensors, "device_type", lambda tensor: "cuda"),
        (tensors, "is_on_cpu", lambda tensor: False),
        (_backends, "_choices", {}),  # of calls on this path alone
        (extension, "launch", launch),
        (cuda_device, "cuda_unavailable_reason", no_reason),
        (cuda_device, "no_code_reason", no_reason),
        (_triton, "_device_reason", lambda tensor: None),
        (_triton, "launch", launch_triton),
    ]
    with ExitStack() as stack:
        for module, name, stub in stubs:
            stack.enter_context(mock.patch.object(module, name, stub))
        yield launched
