# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The CUDA and Triton kernels on a device: all cases, and what only a device can show."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from cases import AWKWARD, REAL, AttnCase, AttnInputs, make_inputs
from summing import HOW, nan_filled_memory
from test_ms_deform_attn import (
    CASES,
    DTYPES,
    case_id,
    check,
    check_not_finite,
    cotangent_of,
    dtype_id,
    results,
)
from torch import Tensor

import vitadapter_fast
from vitadapter_fast.native import cuda_device, extension
from vitadapter_fast.ops.ms_deform_attn import _value_gradient, cuda

ROOT = Path(__file__).resolve().parents[2]
DEVICE = "cuda"
NO_CUDA = cuda_device.cuda_unavailable_reason()
# Many points to a cell, so that threads meet; and several levels.
CROWDED = AttnCase("crowded", 2, 2, 32, 4, ((4, 4),), ((24, 24), (12, 12)))
SHAPES = [CROWDED, REAL[1], REAL[1].classic()]

pytestmark = [pytest.mark.cuda, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


@pytest.fixture(params=HOW)
def how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Sum the value gradient in one of three ways, whatever the rule would choose."""
    points_per_pixel = float("inf") if request.param == "atomics" else 0
    monkeypatch.setattr(_value_gradient, "POINTS_PER_PIXEL", points_per_pixel)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(request.param == "deterministic")
    yield request.param
    torch.use_deterministic_algorithms(before)


def on_device(case: AttnCase, dtype: torch.dtype = torch.float32, seed: int = 0) -> AttnInputs:
    return make_inputs(case, dtype=dtype, device=DEVICE, seed=seed)


def assert_same(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Compare float32 results whose sums may run in another order."""
    for name in wanted:
        torch.testing.assert_close(got[name], wanted[name], rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.usefixtures("how")
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_output_and_gradients(backend: str, case: AttnCase, dtype: torch.dtype) -> None:
    with nan_filled_memory():
        check(make_inputs(case, dtype=dtype), backend, DEVICE)


@pytest.mark.usefixtures("how")
@pytest.mark.parametrize("levels", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("channels", [16, 32, 64, 128])
def test_every_specialized_kernel(backend: str, channels: int, levels: int) -> None:
    sizes = ((5, 3), (1, 4), (2, 1), (1, 1), (2, 2))[:levels]
    case = AttnCase("specialized", 2, 2, channels, 4, sizes, ((3, 5), (1, 2)))
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for form in (case, case.classic()):
            check(make_inputs(form, dtype=dtype), backend, DEVICE)


@pytest.mark.usefixtures("how")
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30, -1e30])
@pytest.mark.parametrize(
    "case", [REAL[0], REAL[0].classic(), AWKWARD[0], AWKWARD[0].classic()], ids=case_id
)
def test_points_that_are_not_finite_read_zero(backend: str, bad: float, case: AttnCase) -> None:
    check_not_finite(backend, bad, case, DEVICE)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("case", SHAPES, ids=case_id)
def test_deterministic_results_are_bit_equal_in_every_run(
    backend: str, case: AttnCase, dtype: torch.dtype
) -> None:
    inputs = on_device(case, dtype)
    cotangent = cotangent_of(inputs)
    torch.use_deterministic_algorithms(True)
    try:
        first, *others = [results(inputs, backend, cotangent) for _ in range(8)]
    finally:
        torch.use_deterministic_algorithms(False)
    for other in others:
        assert all(torch.equal(other[name], first[name]) for name in first)


@pytest.mark.usefixtures("how")
@pytest.mark.parametrize("case", SHAPES, ids=case_id)
def test_kernels_wait_for_what_the_callers_stream_did_before(backend: str, case: AttnCase) -> None:
    inputs = on_device(case)
    cotangent = cotangent_of(inputs).to(DEVICE)
    wanted = results(inputs, backend, cotangent)
    late = inputs.map(torch.zeros_like)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)  # about 0.1 s: launches elsewhere would be long over
        for to, source in zip(late.tensors(), inputs.tensors(), strict=True):
            to.copy_(source)
        got = results(late, backend, cotangent)
    side.synchronize()
    assert_same(got, wanted)


@pytest.mark.parametrize("case", SHAPES, ids=case_id)
def test_captured_forward_replays_on_changed_inputs(backend: str, case: AttnCase) -> None:
    inputs, changed = on_device(case), on_device(case, seed=1)
    warm_up(lambda: inputs.run(backend))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = inputs.run(backend)
    for to, source in zip(inputs.tensors(), changed.tensors(), strict=True):
        to.copy_(source)
    graph.replay()
    assert torch.equal(out, changed.run(backend))


@pytest.mark.usefixtures("how")
@pytest.mark.parametrize("case", SHAPES, ids=case_id)
def test_captured_forward_and_backward_replay_on_changed_inputs(
    backend: str, case: AttnCase
) -> None:
    inputs, changed = on_device(case), on_device(case, seed=1)
    cotangent = cotangent_of(inputs).to(DEVICE)
    warm_up(lambda: results(inputs, backend, cotangent))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = results(inputs, backend, cotangent)
    for to, source in zip(inputs.tensors(), changed.tensors(), strict=True):
        to.copy_(source)
    wanted = results(changed, backend, cotangent)
    for _ in range(2):  # the second replay must find its counters at zero again
        graph.replay()
        assert_same(got, wanted)


def warm_up(run: Callable[[], object]) -> None:
    """Run three times beside the current stream, as torch asks for before a capture."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)


@pytest.mark.usefixtures("how")
@pytest.mark.parametrize("case", SHAPES, ids=case_id)
def test_forward_and_backward_never_wait_for_the_device(backend: str, case: AttnCase) -> None:
    inputs = on_device(case)
    cotangent = cotangent_of(inputs).to(DEVICE)
    torch.cuda.set_sync_debug_mode("error")
    try:
        results(inputs, backend, cotangent)
        with pytest.raises(RuntimeError):  # the mode is on: this one does wait
            cotangent.sum().item()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif("torch.cuda.device_count() < 2", reason="needs a second CUDA device")
@pytest.mark.usefixtures("how")
def test_call_on_the_second_device_leaves_the_first_alone(backend: str) -> None:
    torch.cuda.set_device(0)
    torch.cuda.synchronize(0)

    def allocations() -> int:
        return int(torch.cuda.memory_stats(0).get("allocation.all.allocated", 0))

    before = allocations()
    check(make_inputs(REAL[1], dtype=torch.float32), backend, "cuda:1")
    assert torch.cuda.current_device() == 0
    assert allocations() == before


ONLY_SECOND = """
import torch
from vitadapter_fast.ops import ms_deform_attn_grid
shapes = (1, 64, 2, 32), (1, 64, 2, 1, 4, 2), (1, 64, 2, 1, 4)
leaves = [torch.randn(*shape, device="cuda:1", requires_grad=True) for shape in shapes]
value, offsets, logits = leaves
out = ms_deform_attn_grid(value, [(8, 8)], [(8, 8)], offsets, logits, backend="BACKEND")
torch.autograd.grad(out.sum(), leaves)
assert not torch._C._cuda_hasPrimaryContext(0)
"""


@pytest.mark.skipif("torch.cuda.device_count() < 2", reason="needs a second CUDA device")
def test_process_that_uses_only_the_second_device_makes_no_context_on_the_first(
    backend: str,
) -> None:
    """A context costs hundreds of megabytes; since CUDA 12 making a device current creates it."""
    done = subprocess.run(
        [sys.executable, "-c", ONLY_SECOND.replace("BACKEND", backend)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.skipif(NO_CUDA is not None, reason=str(NO_CUDA))
def test_failing_launch_names_kernel_architecture_and_remedy() -> None:
    # One block more than a grid can have: refused before anything runs, and nothing is read.
    call = {
        "value": 0,
        "points": 0,
        "weights": 0,
        "value_dtype": 0,
        "points_dtype": 0,
        "weights_dtype": 0,
        "value_strides": (32, 32),
        "points_strides": (8, 8),
        "weights_strides": (4, 4),
        "value_shape": [1, 1, 2**31, 32],
        "queries": 1,
        "num_points": 4,
        "level_hw": [1, 1],
        "query_hw": [],
        **cuda_device.device_and_stream(torch.empty(0, device=DEVICE)),
    }
    major, minor = torch.cuda.get_device_capability()
    told = rf"ms_deform_attn forward: cudaError\w+: .*\(sm_{major}{minor}\); .*CUDA_LAUNCH_BLOCKING"
    with pytest.raises(RuntimeError, match=told):
        extension.launch("ms_deform_attn_forward_cuda", **call)
    check(make_inputs(REAL[0], dtype=torch.float32), "cuda", DEVICE)  # the error has been taken


def test_compiled_without_graph_breaks_gives_the_same(backend: str) -> None:
    for case in (REAL[1], REAL[1].classic()):
        leaves = on_device(case).requires_grad()

        def run(value: Tensor, points: Tensor, weights: Tensor, case: AttnCase = case) -> Tensor:
            return 2 * AttnInputs(case, value, points, weights).run(backend)

        compiled = torch.compile(run, fullgraph=True)
        got, wanted = compiled(*leaves.tensors()), run(*leaves.tensors())
        torch.testing.assert_close(got, wanted)
        cotangent = cotangent_of(leaves).to(DEVICE)
        for a, b in zip(
            torch.autograd.grad(got, leaves.tensors(), cotangent),
            torch.autograd.grad(wanted, leaves.tensors(), cotangent),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def relative_error(got: list[Tensor], wanted: list[Tensor]) -> float:
    """Return the length of the difference as a share of what was wanted, over all tensors."""
    pairs = list(zip(got, wanted, strict=True))
    difference = sum((a.cpu().double() - b.double()).square().sum().item() for a, b in pairs)
    return (difference / sum(b.double().square().sum().item() for _, b in pairs)) ** 0.5


@pytest.mark.usefixtures("exact_products")
def test_model_s_equals_the_cpu(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As lengths: where a point falls into another cell, single gradients jump."""
    if backend == "triton":
        # Not by name, because the model's other operators may have no such backend.
        monkeypatch.setattr(cuda, "unsupported_reason", lambda call: "triton's turn")
    torch.manual_seed(0)
    model = vitadapter_fast.vit_adapter_s(init_values=1.0, drop_path_rate=0.0).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(("sampling_offsets.weight", "attention_weights.weight")):
            torch.nn.init.normal_(parameter, std=0.05)
    image = torch.randn(1, 3, 96, 128)

    def run(device: str) -> tuple[list[Tensor], list[Tensor]]:
        model.to(device).zero_grad()
        maps = model(image.to(device))
        generator = torch.Generator().manual_seed(1)
        cotangents = [torch.randn(m.shape, generator=generator).to(device) for m in maps]
        torch.autograd.backward(maps, cotangents)
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        return [m.detach() for m in maps], gradients

    wanted_maps, wanted_gradients = run("cpu")
    maps, gradients = run(DEVICE)
    assert relative_error(maps, wanted_maps) < 1e-4
    assert relative_error(gradients, wanted_gradients) < 1e-2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device was found")
@pytest.mark.skipif("VITADAPTER_TEST_SANITIZED" in os.environ, reason="already sanitized")
def test_kernels_are_clean_under_memcheck() -> None:
    sanitizer = shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path="/usr/local/cuda/bin"
    )
    if sanitizer is None:
        pytest.skip("compute-sanitizer is not installed")
    environment = os.environ | {
        "VITADAPTER_TEST_SANITIZED": "1",
        # Each tensor an allocation of its own: a read past its end is then a fault.
        "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",
    }
    chosen = "(test_output_and_gradients and (prime or odd or one_pixel or five) and not float16)"
    chosen += " or (test_every_specialized_kernel and (16- or 32-)) or (not_finite and nan)"
    chosen = f"({chosen}) and not triton"  # whose own compiler it is not ours to check
    # torch probes the driver with calls that may fail: only what kernels do counts.
    command = [sanitizer, "--tool", "memcheck", "--report-api-errors", "no"]
    command += ["--error-exitcode", "9", sys.executable, "-m", "pytest", "-q", "-x"]
    command += ["-p", "no:cacheprovider", __file__, "-k", chosen]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, cwd=Path(__file__).parent
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    assert " passed" in done.stdout
    assert "ERROR SUMMARY: 0 errors" in done.stdout + done.stderr
