# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Threads, forked and spawned processes, copies, and the end of the interpreter."""

import copy
import io
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import WINDOWED
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vitadapter_fast import ViTAdapter, ms_deform_attn
from vitadapter_fast.ops import dwconv_gelu

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def tiny_model() -> ViTAdapter:
    torch.manual_seed(0)
    return ViTAdapter(**WINDOWED, init_values=1.0).eval()


def image_of(index: int) -> Tensor:
    return torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(index))


def gradients(model: ViTAdapter, image: Tensor) -> list[Tensor]:
    """Return the maps and every gradient, touching nothing of the model."""
    maps = model(image)
    parameters = [p for p in model.parameters() if p.requires_grad]
    total = torch.stack([level.square().mean() for level in maps]).sum()
    grads = torch.autograd.grad(total, parameters, allow_unused=True)
    return [*(level.detach() for level in maps), *(grad for grad in grads if grad is not None)]


def convolved() -> Tensor:
    """Return what the kernel makes on two threads."""
    tokens = torch.linspace(-2, 2, 2 * 96 * 64).view(2, 96, 64)
    return dwconv_gelu(tokens, [(8, 12)], torch.full((64, 1, 3, 3), 0.1), None, backend="cpu")


class Maps(Dataset[Tensor]):
    """The coarsest map of image ``index``, computed where it is asked for."""

    def __init__(self, model: ViTAdapter) -> None:
        self.model = model

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        with torch.no_grad():
            return self.model(image_of(index))[3]


def python(script: str) -> str:
    """Run a script in a fresh interpreter that must end by itself and well; return its output."""
    tests = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ
        | {"PYTHONPATH": f"{tests.parent}{os.pathsep}{tests}{os.pathsep}{tests / 'helpers'}"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def in_forked_child(run: Callable[[], None]) -> int:
    """Return the exit code of a forked child that runs ``run``; 1 if it raises, 9 if it hangs."""
    pid = os.fork()
    if pid == 0:
        try:
            run()
            os._exit(0)
        except BaseException:
            os._exit(1)
    for _ in range(600):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return 9


def test_threads_that_train_at_once_get_what_each_gets_alone() -> None:
    model = tiny_model()
    images = [image_of(index) for index in range(4)]
    wanted = [gradients(model, image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for got, alone in zip(pool.map(gradients, [model] * 4, images), wanted, strict=True):
                for a, b in zip(got, alone, strict=True):
                    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_kernels_called_from_many_threads_at_once_are_bit_equal() -> None:
    wanted = convolved()
    with ThreadPoolExecutor(4) as pool:
        results = [pool.submit(convolved) for _ in range(200)]
    assert all(torch.equal(result.result(), wanted) for result in results)


def test_other_python_threads_run_while_a_kernel_runs() -> None:
    value = torch.zeros(1, 64 * 64, 4, 64)
    points = torch.rand(1, 20000, 4, 1, 16, 2)
    is_done = threading.Event()

    def compute() -> None:
        ms_deform_attn(value, [(64, 64)], points, points[..., 0], backend="cpu")
        is_done.set()

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    thread = threading.Thread(target=compute)
    turns = 0
    thread.start()
    while not is_done.is_set():
        time.sleep(0.001)
        turns += 1
    thread.join()
    torch.set_num_threads(before)
    assert turns > 5  # a kernel that held the lock would leave two or three


def test_number_of_threads_may_change_between_calls() -> None:
    model = tiny_model()
    before = torch.get_num_threads()
    wanted = model(image_of(0))
    try:
        for threads in (1, 5, 2):
            torch.set_num_threads(threads)
            for got, level in zip(model(image_of(0)), wanted, strict=True):
                torch.testing.assert_close(got, level, rtol=1e-4, atol=1e-5)
    finally:
        torch.set_num_threads(before)


def test_kernels_run_on_several_threads_in_a_child_forked_after_their_use() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    wanted = convolved()
    # Shared memory and torch's own operators stay out of it: those are torch's affair.
    assert in_forked_child(lambda: None if torch.equal(convolved(), wanted) else os._exit(2)) == 0
    torch.set_num_threads(before)


def test_a_forked_child_that_fails_is_noticed() -> None:
    def fail() -> None:
        raise RuntimeError

    assert in_forked_child(fail) == 1


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_data_loader_workers_run_the_model(context: str) -> None:
    maps = Maps(tiny_model())
    wanted = [maps[index] for index in range(len(maps))]  # the parent has used the kernels
    loader = DataLoader(
        maps, batch_size=None, num_workers=2, multiprocessing_context=context, timeout=100
    )
    for got, alone in zip(loader, wanted, strict=True):
        torch.testing.assert_close(got, alone, rtol=1e-4, atol=1e-5)


def test_data_loader_workers_forked_before_the_first_use_run_the_model() -> None:
    script = """
import torch
from torch.utils.data import DataLoader
from test_concurrency import Maps, tiny_model
maps = Maps(tiny_model())
loader = DataLoader(maps, batch_size=None, num_workers=1, multiprocessing_context="fork")
first = next(iter(loader))
print(torch.allclose(first, maps[0], rtol=1e-4, atol=1e-5))
"""
    assert python(script) == "True\n"


def add_gradients(model: ViTAdapter) -> None:
    """Run a training step of the shared model in another process."""
    torch.set_num_threads(1)
    maps = model(image_of(0))
    maps[3].sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad, alpha=1e-3)


def test_a_model_in_shared_memory_is_trained_by_another_process() -> None:
    model = tiny_model().share_memory()
    before = model.patch_embed.proj.weight.detach().clone()
    worker = torch.multiprocessing.get_context("fork").Process(target=add_gradients, args=(model,))
    worker.start()
    worker.join(100)
    assert worker.exitcode == 0
    moved = model.patch_embed.proj.weight.detach() - before
    model.patch_embed.proj.weight.data.copy_(before)
    assert moved.abs().max() > 0 and moved.isfinite().all()


def by_torch(model: ViTAdapter) -> Any:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), by_torch],
    ids=["deepcopy", "pickle", "torch.save"],
)
def test_a_copy_of_a_used_model_is_equal_and_apart(copied: Callable[[ViTAdapter], Any]) -> None:
    model = tiny_model()
    wanted = gradients(model, image_of(0))
    twin = copied(model)
    assert all(map(torch.equal, gradients(twin, image_of(0)), wanted))
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert all(map(torch.equal, gradients(model, image_of(0)), wanted))


def test_interpreter_ends_well_after_kernels_ran_on_threads() -> None:
    assert python("import test_concurrency; test_concurrency.convolved(); print('end')") == "end\n"


def test_interpreter_ends_well_while_a_daemon_thread_is_in_a_kernel() -> None:
    # Kernels alone: torch's own operators abort here, a @ b as well (torch 2.13, Python 3.11).
    script = """
import threading, torch
from vitadapter_fast.native import extension
tokens, out, weight = torch.zeros(2, 96, 64), torch.zeros(2, 96, 64), torch.zeros(64, 9)
call = dict(tokens=tokens.data_ptr(), weight=weight.data_ptr(), bias=0, dtype=0, num_threads=2)
call |= dict(tokens_strides=(96 * 64, 64), tokens_shape=[2, 96, 64], grid_hw=[8, 12])
started = threading.Event()
def compute():
    while True:
        extension.launch("dwconv_gelu_forward_cpu", **call, out=out.data_ptr())
        started.set()
threading.Thread(target=compute, daemon=True).start()
started.wait()
print("end")
"""
    for _ in range(3):
        assert python(script) == "end\n"
