# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A model and a function that runs what was written of it in; how far they are apart out."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import ExportError
from ..model import ViTAdapter
from ._precision import exact_products

TOLERANCE = 1e-4
# Neither is the traced size, and no side fits all windows.
CHECKED_SIZES = ((256, 320), (96, 448))


class Parity(NamedTuple):
    """How far exported maps are from the model's at one image size.

    Attributes:
        image_size: (H, W).
        errors: Largest absolute error of each map, relative to its largest absolute value.
    """

    image_size: tuple[int, int]
    errors: tuple[float, ...]


def compare(
    model: ViTAdapter,
    run: Callable[[Tensor], Sequence[Tensor]],
    sizes: Sequence[tuple[int, int]],
    batch: int,
) -> list[Parity]:
    """Run both on random images and return how far they are apart at each size.

    Args:
        model: Returns the maps that are wanted.
        run: What was exported, as a function from images to four maps.
        sizes: (H, W) of the images.
        batch: Images at a time.

    Raises:
        ExportError: An error is above 1e-4 of the peak, or the shapes differ.
    """
    weight = model.patch_embed.proj.weight
    found = []
    for size in sizes:
        generator = torch.Generator().manual_seed(0)
        shape = batch, model.in_chans, *size
        image = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
        image = image.to(weight.device, weight.dtype)
        with torch.no_grad(), exact_products():
            wanted, got = model(image), list(run(image))
        shapes = [[tuple(each.shape) for each in maps] for maps in (wanted, got)]
        if shapes[0] != shapes[1]:
            raise ExportError(
                f"export: at {size[0]} x {size[1]} wanted maps {shapes[0]}, got {shapes[1]}"
            )
        errors = tuple(_error(one, other) for one, other in zip(got, wanted, strict=True))
        # Not max: it may pass over NaN.
        if not all(error <= TOLERANCE for error in errors):
            listed = ", ".join(f"{error:.1e}" for error in errors)
            raise ExportError(
                f"export: what was written is off at {size[0]} x {size[1]}: errors relative to the "
                f"peak of each map are {listed}, allowed is {TOLERANCE:.0e}; nothing was kept"
            )
        found.append(Parity(size, errors))
    return found


def _error(got: Tensor, wanted: Tensor) -> float:
    difference = (got.to(wanted.device).double() - wanted.double()).abs().max()
    return (difference / wanted.double().abs().max()).item()
