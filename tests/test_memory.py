# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Freed memory is used again; asking for huge pages changes no data."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vitadapter_fast
from vitadapter_fast.native import extension, gemm, memory

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


def faults_of(program: str, mode: str) -> int:
    """Return what the program prints, in a process with malloc as the system sets it."""
    command = [sys.executable, "-c", program, mode]
    env = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_kept_memory_comes_without_faults() -> None:
    faults = {mode: faults_of(COUNT_FAULTS, mode) for mode in ("keep", "leave")}
    # Huge pages, where a system makes them unasked, leave a 512th of the faults.
    assert faults["keep"] < min(20, faults["leave"])


def test_without_glibc_nothing_is_changed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(memory.platform, "libc_ver", lambda: ("", ""))
    assert not vitadapter_fast.keep_freed_memory()
    assert "not glibc" in caplog.text


@pytest.mark.parametrize("numel", [0, 1, 2**20 - 1, 2**20, 3 * 2**20 + 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_output_keeps_its_shape_and_strides(numel: int, dtype: torch.dtype) -> None:
    tensor = torch.empty(numel, 3, dtype=dtype).t()
    assert extension.in_huge_pages(tensor) is tensor
    assert (tensor.shape, tensor.stride(), tensor.dtype) == ((3, numel), (1, 3), dtype)
    assert tensor.untyped_storage().nbytes() == tensor.nbytes
    tensor.copy_(torch.arange(3)[:, None])
    assert torch.equal(tensor.sum(1, dtype=torch.float64), numel * torch.arange(3.0).double())


def test_no_output_stays_none() -> None:
    assert extension.in_huge_pages(None) is None


COUNT_FAULTS_OF_PRODUCTS = """
import resource, sys
import torch
from vitadapter_fast.native import gemm
if sys.argv[1] == "leave":
    gemm._expect_huge_pages = lambda: None
torch.set_num_threads(1)
rows, weight = torch.ones(2048, 16), torch.ones(1024, 16)
gemm.linear(rows[:1], weight)
torch.ones(2**22)  # a freed block, after which malloc takes such sizes from the heap
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
products = [gemm.linear(rows, weight) for _ in range(8)]  # 8 MiB, 2**11 pages each
sys.stdout.write(str(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before))
"""
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(
    not HUGE_PAGES.exists() or "[madvise]" not in HUGE_PAGES.read_text(),
    reason="the system has no huge pages for who asks, or for all",
)
def test_products_of_other_libraries_come_in_huge_pages() -> None:
    faults = {mode: faults_of(COUNT_FAULTS_OF_PRODUCTS, mode) for mode in ("ask", "leave")}
    assert faults["leave"] > 8 * 2**10
    assert faults["ask"] < faults["leave"] / 2


@pytest.mark.parametrize("numel", [0, 2**18 - 1, 2**18, 2**22])
def test_memory_made_ready_holds_what_is_put_there(numel: int) -> None:
    kept = torch.arange(2**20, dtype=torch.float32)
    gemm._expect_huge_pages()
    fresh = torch.arange(numel, dtype=torch.float32)
    assert torch.equal(kept, torch.arange(2**20, dtype=torch.float32))
    assert torch.equal(fresh.double(), torch.arange(numel, dtype=torch.float64))


def test_more_memory_than_there_is_cannot_be_made_ready() -> None:
    module, _ = extension.load()
    assert module is not None
    kept = torch.arange(2**20)
    module.prefer_huge_pages_next(2**62)  # malloc has none; nothing is asked
    module.prefer_huge_pages_next(0)
    assert torch.equal(kept, torch.arange(2**20))
    with pytest.raises(TypeError):
        module.prefer_huge_pages_next(-1)
