# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A driver without a device: in the block Triton, and torch, compile for a GPU that is not here."""

from collections.abc import Iterator
from contextlib import contextmanager

import triton
from triton.backends.compiler import GPUTarget


def sm(arch: int) -> GPUTarget:
    """Return an NVIDIA GPU as compilers know it: 90 for sm_90."""
    return GPUTarget("cuda", arch, 32)


SM_90 = sm(90)


class Driver:
    """Answers what a compiler asks; nothing can be launched on it."""

    def __init__(self, target: GPUTarget) -> None:
        self._target = target

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> str:
        # Triton keeps kernels by device: never those of a real one, whose index is a number.
        return f"stub {self._target.arch}"

    def get_current_stream(self, device: str) -> int:
        return 0

    def get_benchmarker(self) -> None:
        """Return None: nothing is timed."""


@contextmanager
def stub_driver(target: GPUTarget = SM_90) -> Iterator[None]:
    """Make a driver for the target the active one in the block, and leave Triton as it was.

    Not by ``reset_active``, which wants a device in some versions.
    """
    config = triton.runtime.driver
    before = dict(vars(config))
    config.set_active(Driver(target))
    try:
        yield
    finally:
        vars(config).update(before)
