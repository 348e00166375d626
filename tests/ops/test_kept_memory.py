# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Large tensors of ours lie in memory that earlier ones have left, and in nobody else's.

A sanitizer runs this file as well: test_sanitizers.py.
"""

import gc
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

import vitadapter_fast
from vitadapter_fast import ops
from vitadapter_fast.native import extension

LARGE = 2**20  # elements of float32: as large as what is kept
MIB = 2**20


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    gc.collect()  # what other tests have left
    vitadapter_fast.free_kept_memory()
    yield
    vitadapter_fast.limit_kept_memory(None)
    vitadapter_fast.free_kept_memory()


def kept() -> tuple[int, int]:
    """Return bytes in use and unused."""
    module, _ = extension.load()
    assert module is not None
    in_use, unused = module.kept_bytes()
    return in_use, unused


def fresh(numel: int, value: float = 0.0) -> Tensor:
    return extension.in_huge_pages(torch.empty(numel)).fill_(value)


def convolved(seed: int, side: int = 128) -> Tensor:
    """Return what an op of ours makes: 64 channels, 4 MiB at a side of 128."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(1, side * side, 64, generator=generator)
    weight = torch.randn(64, 1, 3, 3, generator=generator)
    return ops.dwconv_gelu(tokens, [(side, side)], weight, None, backend="cpu")


def test_a_tensor_takes_the_memory_that_another_has_left() -> None:
    first = convolved(0)
    address, wanted = first.data_ptr(), first.clone()
    second = convolved(1)
    assert second.data_ptr() != address  # the first is in use
    assert torch.equal(first, wanted)
    del first
    third = convolved(0)
    assert third.data_ptr() == address
    assert torch.equal(third, wanted)


def test_a_view_keeps_the_memory_in_use() -> None:
    view = fresh(LARGE, 3.0)[5:7]
    others = [fresh(LARGE, 4.0) for _ in range(3)]
    assert view.tolist() == [3.0, 3.0]
    del others


def test_saved_tensors_keep_the_memory_in_use() -> None:
    leaf = torch.ones(LARGE, requires_grad=True)
    squared = (leaf * fresh(LARGE, 3.0)).sum()  # its factor is kept for backward alone
    others = [fresh(LARGE, 4.0) for _ in range(3)]
    squared.backward()
    assert leaf.grad is not None and leaf.grad.unique().tolist() == [3.0]
    del others


def test_the_smallest_that_wastes_at_most_a_quarter_is_taken() -> None:
    sizes = (8, 10, 16)
    tensors = {size: fresh(size * MIB // 4) for size in sizes}
    addresses = {size: each.data_ptr() for size, each in tensors.items()}
    del tensors
    ten, eight = fresh(10 * MIB // 4), fresh(7 * MIB // 4)
    assert ten.data_ptr() == addresses[10] and eight.data_ptr() == addresses[8]
    assert fresh(12 * MIB // 4).data_ptr() != addresses[16]


def test_twice_what_was_in_use_at_once_is_the_most() -> None:
    base, _ = kept()  # what threads keep for themselves
    for size in range(4, 40, 4):  # MiB: none has room for the next
        tensor = fresh(size * MIB // 4)
        del tensor
        in_use, unused = kept()
        assert in_use == base
        assert size * MIB <= unused <= 2 * (base + size * MIB) - in_use
    assert vitadapter_fast.free_kept_memory() == unused
    assert kept() == (base, 0)


def test_a_limit_holds_and_zero_keeps_nothing() -> None:
    base, _ = kept()
    tensors = [fresh(LARGE) for _ in range(8)]
    assert kept()[0] == base + 32 * MIB
    vitadapter_fast.limit_kept_memory(12 * MIB)
    del tensors
    assert kept() == (base, 12 * MIB)
    vitadapter_fast.limit_kept_memory(0)
    assert kept() == (base, 0)
    tensor = fresh(LARGE, 2.0)
    assert kept() == (base, 0)  # not taken from there at all
    assert tensor.mean() == 2.0
    vitadapter_fast.limit_kept_memory(2**70)
    tensor = fresh(LARGE)
    assert kept() == (base + 4 * MIB, 0)
    with pytest.raises(ValueError, match=r"limit_kept_memory: .* got -1"):
        vitadapter_fast.limit_kept_memory(-1)


def test_threads_never_share() -> None:
    def run(seed: int) -> bool:
        for turn in range(12):
            value = float(100 * seed + turn)
            tensor = fresh(LARGE * (1 + turn % 3), value)
            if not (tensor[0] == tensor[-1] == value and tensor.mean() == value):
                return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(run, range(16)))


def test_a_saved_tensor_is_as_large_as_it_says() -> None:
    larger = fresh(LARGE + 2**16)
    del larger  # its memory is what comes next
    tensor, buffer = fresh(LARGE, 1.0), io.BytesIO()
    torch.save(tensor, buffer)
    assert buffer.tell() < tensor.nbytes + 4096


def test_shared_memory_is_no_longer_ours() -> None:
    tensor = fresh(LARGE, 5.0).share_memory_()
    others = [fresh(LARGE, 6.0) for _ in range(2)]
    assert tensor.mean() == 5.0
    del others


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_child_has_its_own() -> None:
    mine = fresh(LARGE, 1.0)
    left = fresh(LARGE, 2.0)
    del left
    child = os.fork()
    if child == 0:  # torch's threads are the parent's: what is done here needs none
        theirs = extension.in_huge_pages(torch.empty(LARGE))
        theirs[-1:].fill_(3.0)
        os._exit(0 if theirs[-1] == 3.0 and mine[-1] == 1.0 else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert fresh(LARGE)[-1] == 0.0 and mine[-1] == 1.0


def test_modes_of_torch_change_nothing() -> None:
    with torch.inference_mode():
        wanted = convolved(0)
        assert kept()[0] > 0
    torch.set_default_dtype(torch.bfloat16)
    torch.set_default_device("meta")
    try:
        found = extension.in_huge_pages(torch.empty(LARGE, dtype=torch.float32, device="cpu"))
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert found.device.type == "cpu" and found.dtype == torch.float32
    assert torch.equal(convolved(0), wanted)


def test_what_torch_fills_stays_filled() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        assert extension.in_huge_pages(torch.empty(LARGE)).isnan().all()
    finally:
        torch.use_deterministic_algorithms(False)


def test_maps_of_one_image_are_not_those_of_the_next() -> None:
    model = vitadapter_fast.vit_adapter_s().eval()
    images = [
        torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(i)) for i in (0, 1)
    ]
    with torch.no_grad(), ops.backend("cpu"):
        first = model(images[0])
        copies = [level.clone() for level in first]
        model(images[1])
        assert all(map(torch.equal, first, copies))
        del first
        assert all(map(torch.equal, model(images[0]), copies))


ENDS = """
import threading, torch
from vitadapter_fast.native import extension
held = extension.in_huge_pages(torch.ones(2**20))
class Holder:
    tensor = extension.in_huge_pages(torch.ones(2**20))
holder = Holder(); holder.self = holder  # a cycle, freed last or never
ready = threading.Event()
def wait():
    mine = extension.in_huge_pages(torch.ones(2**20))
    ready.set()
    threading.Event().wait()
threading.Thread(target=wait, daemon=True).start()
ready.wait()
"""


def test_a_process_ends_with_tensors_alive() -> None:
    done = subprocess.run([sys.executable, "-c", ENDS], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
