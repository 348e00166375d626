# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Patch embedding: tokens and positions against the plain PyTorch that they are made of."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vitadapter_fast.ops import patch_embed


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
