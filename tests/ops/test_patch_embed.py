# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Patch embedding: every backend against the float64 reference, and that against plain PyTorch."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import PATCH_CASES, PATCH_MODES, PatchCase, PatchInputs, make_patch_inputs
from tolerance import assert_close, assert_same_for_any_number_of_threads
from torch import Tensor

from vitadapter_fast.ops import patch_embed

# The others run here as well: test_cuda_on_cpu.py.
KERNELS = ["cpu"]
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
# (image, table): what autocast makes, half a model cast by hand, and float64 on one side only.
MIXED = [
    (torch.bfloat16, torch.float32),
    (torch.float16, torch.float32),
    (torch.float32, torch.bfloat16),
    (torch.float16, torch.bfloat16),
    (torch.float32, torch.float64),
    (torch.float64, torch.float32),
]


def dtype_id(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def case_id(case: PatchCase) -> str:
    return case.name


def results(inputs: PatchInputs, backend: str, cotangent: Tensor) -> dict[str, Tensor]:
    leaves = inputs.map(lambda tensor: tensor.detach().requires_grad_())
    names = ("image", "weight", "bias", "table")
    named = {n: t for n, t in zip(names, leaves.tensors, strict=True) if t is not None}
    out = leaves.run(backend)
    grads = torch.autograd.grad(out, list(named.values()), cotangent.to(out))
    return {"out": out.detach()} | dict(zip(named, grads, strict=True))


def cotangent_of(inputs: PatchInputs) -> Tensor:
    case = inputs.case
    shape = (case.batch, case.num_tokens, case.channels)
    generator = torch.Generator().manual_seed(1)
    cotangent = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return cotangent.to(inputs.run("reference").dtype)


def check(inputs: PatchInputs, backend: str, device: str = "cpu") -> None:
    """Compare the output and every gradient with the truth, float64 on the same rounded inputs."""
    cotangent = cotangent_of(inputs)
    truth = results(inputs.map(lambda tensor: tensor.double()), "reference", cotangent)
    is_wide = {t.dtype == torch.float64 for t in inputs.tensors if t is not None}
    # float64 has no truth beyond it: the error is measured in float32.
    scale = inputs.map(lambda tensor: tensor.float()) if any(is_wide) else inputs
    reference = results(scale, "reference", cotangent)
    got = results(inputs.map(lambda tensor: tensor.to(device)), backend, cotangent)
    tensors = dict(zip(("image", "weight", "bias", "table"), inputs.tensors, strict=True))
    for name, tensor in got.items():
        source = tensors.get(name)
        assert tensor.dtype == (cotangent.dtype if source is None else source.dtype), name
        # With float32 on the other side it is no more exact than that.
        comparable = tensor.float() if len(is_wide) == 2 else tensor
        assert_close(comparable.cpu(), reference[name], truth[name], name)


@pytest.mark.usefixtures("nan_filled_memory")
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("mode", PATCH_MODES)
@pytest.mark.parametrize("case", PATCH_CASES, ids=case_id)
@pytest.mark.parametrize("backend", KERNELS)
def test_output_and_gradients(backend: str, case: PatchCase, mode: str, dtype: torch.dtype) -> None:
    check(make_patch_inputs(case, mode, dtype=dtype), backend)


@pytest.mark.usefixtures("nan_filled_memory")
@pytest.mark.parametrize(("dtype", "table_dtype"), MIXED, ids=str)
@pytest.mark.parametrize("backend", KERNELS)
def test_table_of_another_dtype(backend: str, dtype: torch.dtype, table_dtype: torch.dtype) -> None:
    for case in (PATCH_CASES[0], PATCH_CASES[5]):
        check(make_patch_inputs(case, dtype=dtype, table_dtype=table_dtype), backend)


@pytest.mark.parametrize("backend", KERNELS)
def test_strided_inputs_give_the_same(backend: str) -> None:
    dense = make_patch_inputs(PATCH_CASES[4], dtype=torch.float32)
    wanted = results(dense, backend, cotangent_of(dense))
    image, weight, bias, table = dense.tensors
    assert image is not None and weight is not None and bias is not None and table is not None
    strided = [
        image.to(memory_format=torch.channels_last),
        weight.to(memory_format=torch.channels_last),
        torch.stack((bias, bias), 1)[:, 0],
        torch.cat((table, table), 1)[:, : table.shape[1]],
    ]
    cotangent = cotangent_of(dense).transpose(1, 2).contiguous().transpose(1, 2)
    got = results(PatchInputs(dense.case, dense.mode, strided), backend, cotangent)  # type: ignore[arg-type]
    for name in wanted:
        torch.testing.assert_close(got[name], wanted[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", KERNELS)
def test_crop_of_a_wider_image_is_read_where_it_lies(backend: str) -> None:
    inputs = make_patch_inputs(PATCH_CASES[0], dtype=torch.float32)
    image = inputs.tensors[0]
    assert image is not None
    wide = torch.full((1, 3, 99, 135), float("nan"))
    wide[:, :, 1:97, 3:131] = image
    crop = PatchInputs(inputs.case, inputs.mode, [wide[:, :, 1:97, 3:131], *inputs.tensors[1:]])
    torch.testing.assert_close(crop.run(backend), inputs.run(backend), rtol=0, atol=0)


def test_cpu_results_are_bit_equal_for_any_number_of_threads() -> None:
    inputs = make_patch_inputs(PATCH_CASES[0], dtype=torch.float32)
    cotangent = cotangent_of(inputs)
    # The table alone is of our kernels; the rest is torch's GEMM.
    assert_same_for_any_number_of_threads(
        lambda: {"table": results(inputs, "cpu", cotangent)["table"]}
    )


def inputs(
    image_hw: tuple[int, int], patch: int = 4, channels: int = 3, seed: int = 0
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(2, channels, *image_hw), (6, channels, patch, patch), (6,), (25, 6)]
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]


def positions(table: Tensor, **how: Any) -> Tensor:
    resized = F.interpolate(table.view(1, 5, 5, 6).permute(0, 3, 1, 2), mode="bicubic", **how)
    return resized.flatten(2).transpose(1, 2)


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("image_hw", [(24, 32), (27, 35), (4, 7), (20, 20)])
def test_bicubic_is_convolution_plus_resized_table(
    image_hw: tuple[int, int], channels: int
) -> None:
    image, weight, bias, table = inputs(image_hw, channels=channels)
    tokens = F.conv2d(image, weight, bias, stride=4)
    wanted = tokens.flatten(2).transpose(1, 2) + positions(table, size=tokens.shape[2:])
    torch.testing.assert_close(patch_embed(image, weight, bias, table, (5, 5)), wanted)


def test_bicubic_antialias_uses_the_antialiased_filter() -> None:
    image, weight, bias, table = inputs((12, 32))
    zero = torch.zeros_like(weight)
    got = patch_embed(image, zero, None, table, (5, 5), mode="bicubic_antialias")
    wanted = positions(table, size=(3, 8), antialias=True)
    torch.testing.assert_close(got[:1], wanted)
    assert not torch.allclose(got[:1], positions(table, size=(3, 8)))


def test_bicubic_offset_scales_by_the_grid_plus_a_tenth() -> None:
    image, weight, bias, table = inputs((12, 32))
    zero = torch.zeros_like(weight)
    got = patch_embed(image, zero, None, table, (5, 5), mode="bicubic_offset")
    torch.testing.assert_close(got[:1], positions(table, scale_factor=(3.1 / 5, 8.1 / 5)))


@pytest.mark.parametrize("mode", ["bicubic", "bicubic_offset", "bicubic_antialias"])
def test_a_table_that_fits_is_added_as_it_is(mode: str) -> None:
    image, weight, _, table = inputs((20, 20))
    got = patch_embed(image, torch.zeros_like(weight), None, table, (5, 5), mode=mode)
    assert torch.equal(got[0], table)


@pytest.mark.parametrize("mode", ["bicubic", "bicubic_offset", "bicubic_antialias"])
def test_gradients_in_every_mode(mode: str) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, 2, 5, 7), (3, 2, 2, 2), (3,), (25, 3)]
    leaves = [
        torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in shapes
    ]
    assert torch.autograd.gradcheck(
        lambda *tensors: patch_embed(*tensors, (5, 5), mode=mode), leaves
    )


def test_only_the_needed_gradients_are_computed_without_bias() -> None:
    image, weight, _, table = inputs((12, 32))
    weight.requires_grad_()
    out = patch_embed(image, weight, None, table, (5, 5))
    out.sum().backward()
    assert weight.grad is not None and image.grad is None and table.grad is None


BAD_CALLS: dict[str, tuple[dict[str, Any], str]] = {
    "mode": ({"mode": "nearest"}, "mode must be one of"),
    "channels": ({"image": torch.zeros(1, 4, 8, 8)}, r"image must be \[B, I, H, W\]"),
    "small": ({"image": torch.zeros(1, 3, 3, 8)}, "at least one 4x4 patch"),
    "bias": ({"bias": torch.zeros(5)}, r"bias must be \[6\]"),
    "table": ({"pos_embed": torch.zeros(5, 6)}, r"pos_embed must be \[2 \* 2, 6\]"),
    "pos_hw": ({"pos_hw": (0, 4)}, "pos_hw must be two positive sizes"),
    "dtype": ({"weight": torch.zeros(6, 3, 4, 4).double()}, "weight must be torch.float32"),
    "integer": ({"image": torch.zeros(1, 3, 8, 8, dtype=torch.uint8)}, "must be a floating tensor"),
    "device": ({"pos_embed": torch.zeros(4, 6, device="meta")}, "must be on cpu with image"),
}


@pytest.mark.parametrize(("change", "message"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_bad_call_is_a_value_error(change: dict[str, Any], message: str) -> None:
    call: dict[str, Any] = {
        "image": torch.zeros(1, 3, 8, 8),
        "weight": torch.zeros(6, 3, 4, 4),
        "bias": torch.zeros(6),
        "pos_embed": torch.zeros(4, 6),
        "pos_hw": (2, 2),
    }
    patch_embed(**call)
    with pytest.raises(ValueError, match=f"^patch_embed: .*{message}"):
        patch_embed(**(call | change))
