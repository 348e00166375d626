# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Patch kernels are resized as ViT-Adapter and FlexiViT do."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from checkpoint_cases import DATA, official, saved, tiny_model
from safetensors.torch import load_file

from vitadapter_fast.weights import resample_patch_kernel


def test_bilinear_resize_is_bit_equal_to_interpolate() -> None:
    weight = torch.randn(5, 3, 14, 14)
    wanted = F.interpolate(weight, size=(16, 16), mode="bilinear", align_corners=False)
    assert torch.equal(resample_patch_kernel(weight, 16, "bilinear"), wanted)


@pytest.mark.parametrize("size", [16, 8])
def test_pi_resize_equals_timm(size: int) -> None:
    reference = load_file(DATA / "patch_kernel_pi.safetensors")
    resized = resample_patch_kernel(reference["weight"], size, "pi")
    torch.testing.assert_close(resized, reference[f"timm_{size}"], rtol=0, atol=1e-5)


def test_pi_resize_keeps_the_tokens_of_an_enlarged_patch() -> None:
    weight = torch.randn(6, 1, 14, 14, dtype=torch.float64)
    patch = torch.randn(1, 1, 14, 14, dtype=torch.float64)
    enlarged = F.interpolate(patch, size=(16, 16), mode="bicubic", antialias=True)
    tokens = F.conv2d(enlarged, resample_patch_kernel(weight, 16, "pi"))
    torch.testing.assert_close(tokens, F.conv2d(patch, weight))


@pytest.mark.parametrize("method", ["bilinear", "pi"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_resize_returns_the_dtype_it_got(dtype: torch.dtype, method: Any) -> None:
    assert resample_patch_kernel(torch.randn(2, 3, 14, 14).to(dtype), 16, method).dtype == dtype


@pytest.mark.parametrize("method", ["bilinear", "pi"])
def test_resize_to_the_same_size_changes_nothing(method: Any) -> None:
    weight = torch.randn(2, 3, 14, 14)
    assert resample_patch_kernel(weight, 14, method) is weight


def test_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match="'nearest'"):
        resample_patch_kernel(torch.randn(2, 3, 14, 14), 16, "nearest")  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.complex64])
def test_kernel_that_is_not_floating_is_refused(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=f"wanted a floating weight, got {dtype}"):
        resample_patch_kernel(torch.ones(2, 3, 14, 14).to(dtype), 16)


@pytest.mark.parametrize("method", ["bilinear", "pi"])
def test_model_of_patch_16_takes_a_file_of_patch_14_by_the_chosen_method(
    method: Any, tmp_path: Path
) -> None:
    tensors = official(patch=14)
    path = saved(tensors, tmp_path / "vit14.pth")
    model = tiny_model(patch_size=16, pretrained=path, patch_method=method)
    wanted = resample_patch_kernel(tensors["patch_embed.proj.weight"], 16, method)
    assert torch.equal(model.patch_embed.proj.weight, wanted)
    assert torch.equal(model.pos_embed, tensors["pos_embed"])


def test_model_refuses_an_unknown_method(tmp_path: Path) -> None:
    path = saved(official(patch=14), tmp_path / "vit14.pth")
    with pytest.raises(ValueError, match="method must be 'bilinear' or 'pi', got 'cubic'"):
        tiny_model(pretrained=path, patch_method="cubic")
