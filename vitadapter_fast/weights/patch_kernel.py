# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The kernel of a patch embedding in, the same for another patch size or other channels out."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

PatchMethod = Literal["bilinear", "pi"]


def check_method(method: str) -> None:
    """Raise ValueError unless ``method`` is a ``PatchMethod``."""
    if method not in ("bilinear", "pi"):
        raise ValueError(f"patch kernel: method must be 'bilinear' or 'pi', got {method!r}")


def resample_patch_kernel(weight: Tensor, size: int, method: PatchMethod = "bilinear") -> Tensor:
    """Resize the kernel of a patch embedding.

    Args:
        weight: [C, I, p, p], floating.
        size: The new p.
        method: ``bilinear`` interpolates the kernel, as ViT-Adapter's converter does; the tokens
            come out larger by about (size / p)^2. ``pi`` keeps the tokens of a resized image, by
            the pseudo-inverse of a bicubic, antialiased resize.

    Returns:
        [C, I, size, size] in the dtype of ``weight``; ``weight`` itself where p is the size.

    Raises:
        ValueError: The weight is not 4-dimensional and floating, or the method unknown.

    Source: Beyer et al. 2022, arXiv:2212.08013, section 3.4.
    """
    check_method(method)
    if weight.dim() != 4 or size < 1:
        raise ValueError(
            f"resample_patch_kernel: wanted a weight [C, I, p, p] and a positive size, got "
            f"{tuple(weight.shape)} and {size}"
        )
    if not weight.is_floating_point():
        raise ValueError(f"resample_patch_kernel: wanted a floating weight, got {weight.dtype}")
    height, width = weight.shape[2:]
    if (height, width) == (size, size):
        return weight
    if method == "bilinear":
        wide = weight if weight.dtype == torch.float64 else weight.float()
        resized = F.interpolate(wide, size=(size, size), mode="bilinear", align_corners=False)
        return resized.to(weight.dtype)
    basis = torch.eye(height * width, dtype=torch.float64, device=weight.device)
    images = F.interpolate(
        basis.view(-1, 1, height, width), size=(size, size), mode="bicubic", antialias=True
    )
    inverse = torch.linalg.pinv(images.flatten(1))  # [size * size, p * p]
    kernels: Tensor = weight.double().flatten(2) @ inverse.T
    return kernels.view(*weight.shape[:2], size, size).to(weight.dtype)


def fit_patch_kernel(kernel: Tensor, wanted: Tensor, method: PatchMethod) -> Tensor:
    """Return a kernel of a DINOv2 file with the patch size and the channels of a model's.

    Args:
        kernel: [C, I, p, p] of the file.
        wanted: That of the model; only its shape counts.
        method: See ``resample_patch_kernel``.

    Returns:
        The kernel; as it is if it is of another kind of model.
    """
    # A kernel of another model stays as it is, to be reported with the rest.
    if kernel.dim() != 4 or wanted.dim() != 4 or kernel.shape[0] != wanted.shape[0]:
        return kernel
    if not kernel.is_floating_point():
        return kernel
    if kernel.shape[1] == 3:
        kernel = with_channels(kernel, wanted.shape[1])
    if wanted.shape[2] != wanted.shape[3]:
        return kernel
    return resample_patch_kernel(kernel, wanted.shape[2], method)


def with_channels(kernel: Tensor, channels: int) -> Tensor:
    """Return a kernel for images of other channels.

    Args:
        kernel: [C, I, p, p].
        channels: Of the images. For 1 the kernel is summed, else its channels are repeated in turn,
            scaled by I / channels, so that gray images give the same in all.

    Returns:
        [C, channels, p, p].
    """
    given = kernel.shape[1]
    if channels == given:
        return kernel
    if channels == 1:
        return kernel.sum(dim=1, keepdim=True)
    repeated = kernel.repeat(1, math.ceil(channels / given), 1, 1)[:, :channels]
    return repeated * (given / channels)
