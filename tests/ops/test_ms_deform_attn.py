# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Every backend of multi-scale deformable attention against the float64 reference."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import ALL, NO_QUERIES, REAL, AttnCase, AttnInputs, make_inputs
from tolerance import assert_close, assert_same_for_any_number_of_threads
from torch import Tensor

from vitadapter_fast.ops import ms_deform_attn, ms_deform_attn_grid

# The others run here as well: test_cuda_on_cpu.py, test_triton_interpreter.py.
KERNELS = ["cpu"]
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
CASES = [*ALL, *(case.classic() for case in ALL), NO_QUERIES]


def case_id(case: AttnCase) -> str:
    return f"{case.name}-{'grid' if case.query_hw else 'classic'}"


def dtype_id(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def results(inputs: AttnInputs, backend: str, cotangent: Tensor) -> dict[str, Tensor]:
    leaves = inputs.requires_grad()
    out = leaves.run(backend)
    grads = torch.autograd.grad(out, leaves.tensors(), cotangent.to(out))
    return dict(zip(("out", "value", "points", "weights"), (out.detach(), *grads), strict=True))


def cotangent_of(inputs: AttnInputs) -> Tensor:
    case = inputs.case
    shape = (case.batch, case.num_queries, case.heads * case.channels)
    generator = torch.Generator().manual_seed(1)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(inputs.value.dtype)


def check(inputs: AttnInputs, backend: str, device: str = "cpu") -> None:
    """Compare the output and every gradient with the truth, float64 on the same rounded inputs."""
    cotangent = cotangent_of(inputs)
    dtype = inputs.value.dtype
    truth = results(inputs.to(torch.float64), "reference", cotangent)
    scale = inputs.to(torch.float32) if dtype == torch.float64 else inputs
    reference = results(scale, "reference", cotangent)
    got = results(inputs.map(lambda tensor: tensor.to(device)), backend, cotangent)
    for name, tensor in got.items():
        if dtype != torch.float64:
            assert tensor.dtype == reference[name].dtype
        assert_close(tensor.cpu(), reference[name], truth[name], name)


def check_not_finite(backend: str, bad: float, case: AttnCase, device: str = "cpu") -> None:
    """Compare with the same call whose bad points are moved outside by hand."""
    inputs = make_inputs(case, dtype=torch.float32)
    inputs.points[..., ::2, :] = bad  # every other point
    outside = AttnInputs(case, inputs.value, inputs.points.clone(), inputs.weights)
    outside.points[..., ::2, :] = -9e3
    cotangent = cotangent_of(inputs)
    got = results(inputs.map(lambda tensor: tensor.to(device)), backend, cotangent)
    wanted = results(outside, "reference", cotangent)
    for name in got:
        torch.testing.assert_close(got[name].cpu(), wanted[name], rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("nan_filled_memory")
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("case", CASES, ids=case_id)
@pytest.mark.parametrize("backend", KERNELS)
def test_output_and_gradients(backend: str, case: AttnCase, dtype: torch.dtype) -> None:
    check(make_inputs(case, dtype=dtype), backend)


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("spread", [0.0, 40.0])
def test_points_on_the_query_and_far_outside(backend: str, spread: float) -> None:
    for case in (REAL[0], REAL[4].classic()):
        check(make_inputs(case, spread=spread, dtype=torch.float32), backend)


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("wide", ["points", "weights"])
def test_float32_points_or_weights_with_a_16_bit_value(backend: str, wide: str) -> None:
    inputs = make_inputs(REAL[1], dtype=torch.bfloat16)
    setattr(inputs, wide, getattr(inputs, wide).float() + 1e-3)
    check(inputs, backend)


@pytest.mark.usefixtures("nan_filled_memory")
@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("case", [REAL[0], REAL[0].classic()], ids=case_id)
def test_gradients_that_nobody_needs_are_not_computed(backend: str, case: AttnCase) -> None:
    full = results(
        make_inputs(case, dtype=torch.float32),
        backend,
        torch.tensor(1.0).expand(case.batch, case.num_queries, case.heads * case.channels),
    )
    for wanted in range(3):
        inputs = make_inputs(case, dtype=torch.float32)
        leaf = inputs.tensors()[wanted].requires_grad_()
        (grad,) = torch.autograd.grad(inputs.run(backend).sum(), leaf)
        torch.testing.assert_close(grad, full[("value", "points", "weights")[wanted]])


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("case", REAL[:1], ids=case_id)
def test_strided_inputs_are_read_where_they_lie(backend: str, case: AttnCase) -> None:
    dense = make_inputs(case, dtype=torch.float32)
    B, Q, M, L, P, _ = dense.points.shape
    # Offsets and logits as slices of one projection, value as a slice of a wider one.
    joint = torch.cat((dense.points.flatten(2), dense.weights.flatten(2)), -1)
    points = joint[..., : M * L * P * 2].view(B, Q, M, L, P, 2)
    weights = joint[..., M * L * P * 2 :].view(B, Q, M, L, P)
    value = torch.cat((dense.value, dense.value), 2)[:, :, : dense.case.heads]
    assert not points.is_contiguous() and not value.is_contiguous()
    strided = AttnInputs(dense.case, value, points, weights)
    torch.testing.assert_close(strided.run(backend), dense.run(backend), rtol=0, atol=0)


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("case", REAL[1:2], ids=case_id)
def test_transposed_inputs_and_cotangent_give_the_same(backend: str, case: AttnCase) -> None:
    dense = make_inputs(case, dtype=torch.float32)
    mixed = dense.map(lambda tensor: tensor.transpose(-1, -2).contiguous().transpose(-1, -2))
    cotangent = cotangent_of(dense)
    wanted = results(dense, backend, cotangent)
    got = results(mixed, backend, cotangent.transpose(0, 2).contiguous().transpose(0, 2))
    for name in wanted:
        torch.testing.assert_close(got[name], wanted[name], rtol=0, atol=0)


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30, -1e30])
@pytest.mark.parametrize("case", [REAL[0], REAL[0].classic()], ids=case_id)
def test_points_that_are_not_finite_read_zero(backend: str, bad: float, case: AttnCase) -> None:
    check_not_finite(backend, bad, case)


@pytest.mark.parametrize("backend", [*KERNELS, "reference"])
def test_gradient_at_a_pixel_center_is_that_of_the_cell_to_the_right(backend: str) -> None:
    value = torch.tensor([10.0, 20.0, 40.0]).view(1, 3, 1, 1)
    offsets = torch.zeros(1, 3, 1, 1, 1, 2, requires_grad=True)
    logits = torch.zeros(1, 3, 1, 1, 1)
    out = ms_deform_attn_grid(value, [(1, 3)], [(1, 3)], offsets, logits, backend=backend)
    (grad,) = torch.autograd.grad(out.sum(), offsets)
    assert out.flatten().tolist() == pytest.approx([10, 20, 40])
    assert grad[0, :, 0, 0, 0, 0].tolist() == pytest.approx([10, 20, -40])


@pytest.mark.parametrize("backend", [*KERNELS, "reference"])
def test_a_point_half_a_pixel_outside_reads_half_and_one_pixel_outside_reads_zero(
    backend: str,
) -> None:
    value = torch.full((1, 1, 1, 1), 8.0)
    logits = torch.zeros(1, 1, 1, 1, 1)
    for shift, wanted in ((-0.5, 4.0), (0.5, 4.0), (-1.0, 0.0), (1.0, 0.0), (0.0, 8.0)):
        for axis in (0, 1):
            offsets = torch.zeros(1, 1, 1, 1, 1, 2)
            offsets[..., axis] = shift
            out = ms_deform_attn_grid(value, [(1, 1)], [(1, 1)], offsets, logits, backend=backend)
            assert out.item() == wanted


@pytest.mark.parametrize("backend", [*KERNELS, "reference"])
def test_grid_equals_classic_with_locations_and_softmax_made_outside(backend: str) -> None:
    from cases import query_centers

    grid = make_inputs(REAL[0])
    case = grid.case
    sizes = torch.tensor([[w, h] for h, w in case.level_hw], dtype=torch.float64)[:, None]
    locations = query_centers(case)[:, None, None, None] + grid.points / sizes
    weights = grid.weights.flatten(-2).softmax(-1).view_as(grid.weights)
    out = ms_deform_attn(grid.value, case.level_hw, locations, weights, backend=backend)
    torch.testing.assert_close(out, grid.run(backend))


@pytest.mark.parametrize("case", [REAL[0], REAL[4].classic()], ids=case_id)
def test_cpu_results_are_bit_equal_for_any_number_of_threads(case: AttnCase) -> None:
    inputs = make_inputs(case, dtype=torch.float32)
    cotangent = cotangent_of(inputs)
    assert_same_for_any_number_of_threads(lambda: results(inputs, "cpu", cotangent))


@pytest.mark.thorough
@pytest.mark.skipif(os.environ.get("VITADAPTER_ISA") == "portable", reason="already portable")
def test_portable_build_of_the_cpu_kernels_passes_the_same_cases() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
    some = "injector_s or prime or odd or many or five"
    command += ["-k", f"test_output_and_gradients and cpu and ({some})"]
    environment = os.environ | {"VITADAPTER_ISA": "portable"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, cwd=Path(__file__).parent
    )
    assert done.returncode == 0, done.stdout[-3000:]
