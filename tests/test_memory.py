# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Freed memory is used again; asking for huge pages changes no data."""

import os
import platform
import subprocess
import sys

import pytest
import torch

import vitadapter_fast
from vitadapter_fast import memory
from vitadapter_fast.ops import _native

COUNT_FAULTS = """
import resource, sys
import torch, vitadapter_fast
if sys.argv[1] == "keep":
    assert vitadapter_fast.keep_freed_memory()
def fill():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16, 2**20)  # 64 MiB, 2**14 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
torch.set_num_threads(1)
# Aligned memory leaves small pieces behind, which part the large ones at first.
sys.stdout.write(str([fill() for _ in range(20)][-1]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_kept_memory_comes_without_faults() -> None:
    faults = {}
    for mode in ("keep", "leave"):
        command = [sys.executable, "-c", COUNT_FAULTS, mode]
        env = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        faults[mode] = int(done.stdout)
    # Huge pages, where a system makes them unasked, leave a 512th of the faults.
    assert faults["keep"] < min(20, faults["leave"])


def test_without_glibc_nothing_is_changed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(memory.platform, "libc_ver", lambda: ("", ""))
    assert not vitadapter_fast.keep_freed_memory()
    assert "not glibc" in caplog.text


@pytest.mark.parametrize("numel", [0, 1, 2**20 - 1, 2**20, 3 * 2**20 + 7])
def test_an_output_keeps_its_place_and_what_is_in_it(numel: int) -> None:
    tensor = torch.arange(numel, dtype=torch.float32)
    assert _native.output_address(tensor) == tensor.data_ptr()
    assert torch.equal(tensor, torch.arange(numel, dtype=torch.float32))


def test_no_output_has_no_address() -> None:
    assert _native.output_address(None) == 0
