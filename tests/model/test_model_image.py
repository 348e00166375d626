# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""What the model takes for an image, and the gradient that the image gets."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vitadapter_fast import ViTAdapter

Build = Callable[..., ViTAdapter]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            [torch.zeros(3, 64, 64)] * 2,
            r"one tensor \[B, 3, H, W\], got a list; torch.stack images of one size, or pass each",
        ),
        ((torch.zeros(3, 64, 64),), "got a tuple; torch.stack"),
        (np.zeros((1, 3, 64, 64), np.float32), "got a ndarray; make a float tensor of it"),
        ({"image": torch.zeros(1, 3, 64, 64)}, "got a dict; make a float tensor"),
        (None, "got a NoneType"),
    ],
    ids=["list", "tuple", "array", "dict", "None"],
)
def test_what_is_no_tensor_is_refused(given: Any, message: str, tiny: Build) -> None:
    with pytest.raises(TypeError, match=f"ViTAdapter: image must be .*{message}"):
        tiny()(given)


def gradient_of(model: ViTAdapter, image: Tensor) -> Tensor:
    image = image.clone().requires_grad_()
    sum(level.sin().mean() for level in model.eval()(image)).backward()  # type: ignore[union-attr]
    assert image.grad is not None
    return image.grad


def detach(module: nn.Module, args: Any, out: Tensor) -> Tensor:
    return out.detach()


def test_frozen_vit_leaves_the_image_the_gradient_of_the_spatial_prior(
    tiny: Build, image: Tensor
) -> None:
    cut = tiny()
    for module in (cut.patch_embed, *(each.injector for each in cut.interactions)):
        module.register_forward_hook(detach)
    got, wanted = gradient_of(tiny(frozen_vit=True), image), gradient_of(cut, image)
    torch.testing.assert_close(got, wanted)
    whole = gradient_of(tiny(), image)
    assert (got - whole).norm() > 0.1 * whole.norm()


def test_vit_without_trainable_parameters_leaves_the_image_its_gradient(
    tiny: Build, image: Tensor
) -> None:
    """As ``frozen_vit`` advises to who learns what comes before the model."""
    model = tiny()
    model.pos_embed.requires_grad_(False)
    for part in (model.patch_embed, model.blocks):
        part.requires_grad_(False)
    torch.testing.assert_close(gradient_of(model, image), gradient_of(tiny(), image))
