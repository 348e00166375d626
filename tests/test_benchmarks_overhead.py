# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The CUDA path's Python runs without a GPU, as it would with one, and leaves nothing behind."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import bench_overhead  # noqa: E402
from cases import AttnCase, make_inputs  # noqa: E402
from cuda_path import WrongPath, cuda_path  # noqa: E402

from vitadapter_fast.native import token_rows  # noqa: E402
from vitadapter_fast.ops import _cuda, _triton  # noqa: E402
from vitadapter_fast.ops.ms_deform_attn import cuda  # noqa: E402

pytestmark = pytest.mark.skipif(
    _triton.unavailable_reason() is not None, reason="windowed attention on GPUs is Triton's"
)


def test_the_cuda_path_is_taken_and_given_back() -> None:
    inputs = make_inputs(AttnCase("", 1, 2, 32, 4, ((4, 4),), ((2, 2),)), dtype=torch.float32)
    before = inputs.run()
    with cuda_path() as launched:
        inputs.run()
        assert launched == {"ms_deform_attn_forward_cuda": 1}
        assert not token_rows.is_ours(torch.ones(1))
    assert _cuda.unsupported_reason(inputs.value) is not None
    assert token_rows.is_ours(torch.ones(1)) and torch.equal(before, inputs.run())


def test_a_kernel_of_the_cpu_on_the_cuda_path_is_an_error() -> None:
    with cuda_path(), pytest.raises(WrongPath, match="gelu_rows_cpu"):
        token_rows.gelu(torch.ones(4))


@pytest.mark.parametrize("mode", bench_overhead.MODEL_MODES)
def test_the_model_runs_on_the_cuda_path(mode: str) -> None:
    (found,) = bench_overhead.model(seconds=0.0, modes=[mode])
    # 12 blocks of a window or two, 4 injectors, 6 extractors with a convolution, 2 for the patches.
    assert found.launches >= 8 + 4 + 6 + 6 + 2
    assert found.ratio > 0 and "plain + SDPA" in str(found)


def test_every_operator_is_timed_against_its_backend() -> None:
    found = list(bench_overhead.operators(seconds=0.02, modes=["no gradients"]))
    assert {each.what for each in found} == set(bench_overhead._operators())
    assert all(each.launches >= 1 and each.ours_s > each.other_s > 0 for each in found)


def test_a_backend_that_does_more_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = cuda.forward

    def slow(call: object) -> torch.Tensor:
        sum(range(50_000))
        return right(call)  # type: ignore[arg-type]

    monkeypatch.setattr(cuda, "forward", slow)
    lines = bench_overhead.operators(seconds=0.02, modes=["recording"])
    (found,) = (each for each in lines if each.what == "ms_deform_attn")
    assert found.other_s > 300e-6


def test_the_benchmark_prints_its_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # the door is that of a GPU then
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--scale", "smoke"]
    done = subprocess.run(
        [*command, "benchmarks/bench_overhead.py"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "model, depth of S    no gradients" in done.stdout and "its backend" in done.stdout
