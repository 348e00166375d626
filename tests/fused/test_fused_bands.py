# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The stem in bands, for inference on the CPU: the numbers are those of whole maps."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from vitadapter_fast import ViTAdapter
from vitadapter_fast.fused import bands
from vitadapter_fast.fused.spatial_prior import conv_norm_relu

Tiny = Callable[..., ViTAdapter]


@pytest.fixture
def stem(tiny: Tiny) -> nn.Sequential:
    layers = tiny().double().eval().spm.stem
    for module in layers.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
    assert isinstance(layers, nn.Sequential)
    return layers


@pytest.fixture
def bands_run(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of the result that each band makes."""
    run, made = bands._rows_of, []

    def counted(x: Tensor, layers: list[bands.Layer], first: int, last: int) -> Tensor:
        if len(layers) == 4:
            made.append(last - first)
        return run(x, layers, first, last)

    monkeypatch.setattr(bands, "_rows_of", counted)
    return made


def nhwc(*shape: int) -> Tensor:
    image = torch.randn(shape, dtype=torch.float64)
    return image.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", [(1, 3, 32, 32), (1, 3, 96, 64), (3, 3, 64, 32)])
@pytest.mark.parametrize("rows", [1, 2, 3, 7, 8, 100])
def test_bands_of_any_height_make_the_whole(
    size: tuple[int, ...],
    rows: int,
    stem: nn.Sequential,
    bands_run: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image = nhwc(*size)
    with torch.no_grad():
        wanted = stem(image)
    height = wanted.shape[2]
    row_bytes = wanted[:, :, 0].numel() * 8 * 2 * 2  # before the pool: twice as wide, two rows
    monkeypatch.setattr(bands, "_BAND_BYTES", rows * row_bytes)
    with torch.no_grad():
        got = conv_norm_relu(image, stem)
    assert bands_run == [min(rows, height - first) for first in range(0, height, rows)]
    assert got.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(got, wanted)


def test_not_a_number_spreads_as_far_as_in_whole_maps(
    stem: nn.Sequential, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bands, "_BAND_BYTES", 1)
    image = nhwc(1, 3, 64, 64)
    image[0, 0, 0, 9] = image[0, 1, 37, 20] = float("nan")
    with torch.no_grad():
        got, wanted = conv_norm_relu(image, stem), stem(image)
    assert 0 < got.isnan().sum() < got.numel()
    torch.testing.assert_close(got, wanted, equal_nan=True)


@pytest.mark.parametrize("changed", ["training", "gradients", "norm", "subclass"])
def test_whole_maps_where_bands_would_not_do(
    changed: str, stem: nn.Sequential, bands_run: list[int]
) -> None:
    image = nhwc(1, 3, 64, 64)
    if changed == "training":
        stem.train()
    elif changed == "norm":
        stem[1] = nn.GroupNorm(2, stem[0].out_channels).double()
    elif changed == "subclass":
        image = image.as_subclass(type("Marked", (Tensor,), {}))
    with torch.set_grad_enabled(changed == "gradients"):
        conv_norm_relu(image, stem)
    assert not bands_run
