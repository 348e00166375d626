# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Principal components of feature maps as colors."""

import pytest
import torch

pytest.importorskip("PIL.Image", reason="needs the [cli] extra")

from vitadapter_fast.commands.features.picture import pca_colors  # noqa: E402


def test_pca_recovers_orthogonal_structure():
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(32, 3))[0]
    sources = torch.rand(3, 40, 50)
    scales = torch.tensor([9.0, 3.0, 1.0])
    feature_map = torch.einsum("ck,khw,k->chw", basis, sources, scales) + 5
    colors = pca_colors(feature_map)
    assert colors.shape == (3, 40, 50)
    for color, source in zip(colors, sources, strict=True):
        match = torch.corrcoef(torch.stack([color.flatten(), source.flatten()]))[0, 1]
        assert abs(match) > 0.97


def test_pca_of_cells_removes_the_pattern_of_four_kernels():
    torch.manual_seed(0)
    content = torch.rand(1, 20, 30).repeat_interleave(2, 1).repeat_interleave(2, 2)
    kernels = torch.randn(16, 2, 2).repeat(1, 20, 30)
    color = pca_colors(content * kernels + kernels, cell=2)[0]
    match = torch.corrcoef(torch.stack([color.flatten(), content.flatten()]))[0, 1]
    assert abs(match) > 0.7


def test_pca_takes_the_signs_of_like():
    feature_map = torch.randn(8, 20, 20)
    colors = pca_colors(feature_map)
    torch.testing.assert_close(pca_colors(feature_map, like=1 - colors), 1 - colors)


@pytest.mark.parametrize("cell", [1, 2])
@pytest.mark.parametrize("value", [0.0, 3.7, float("nan")])
def test_pca_of_a_constant_map_is_gray(cell, value):
    colors = pca_colors(torch.full((16, 9, 7), value), cell=cell)
    assert colors.shape == (3, 9, 7)
    assert (colors == 0.5).all()


def test_pca_of_one_position_is_finite():
    assert pca_colors(torch.randn(16, 1, 1)).isfinite().all()


def test_pca_is_deterministic():
    feature_map = torch.randn(16, 12, 12)
    assert torch.equal(pca_colors(feature_map), pca_colors(feature_map))
