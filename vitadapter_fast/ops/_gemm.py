# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Matrices in, products out, by the fastest of the libraries that torch carries.

On the CPU torch multiplies float32 matrices with MKL, which runs at half the speed of oneDNN on
processors that are not Intel's; but convolutions go to oneDNN, and a 1 x 1 convolution of channels-
last pixels is a matrix product. Milliseconds on a 2-core AMD EPYC, torch 2.13, mm against this:
4096 x 768 x 1024 35.5 and 15.3; 1024 x 384 x 1536 6.9 and 3.3; 1024 x 384 x 384 1.8 and 0.9.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight


def linear(rows: Tensor, weight: Tensor) -> Tensor:
    """Return ``rows @ weight.T``, [N, C], contiguous.

    Args:
        rows: [N, K], contiguous.
        weight: [C, K] in the same dtype.
    """
    if not _by_convolution(rows):
        return torch.mm(rows, weight.t())
    out = F.conv2d(_as_pixels(rows), weight[:, :, None, None])
    # Channels last like its input, but for shapes too small to tell the layouts apart.
    return out.permute(0, 2, 3, 1).contiguous().view(rows.shape[0], weight.shape[0])


def weight_gradient(grad: Tensor, rows: Tensor) -> Tensor:
    """Return ``grad.T @ rows``, [C, K], the gradient of the weight of ``linear``.

    Args:
        grad: [N, C], contiguous.
        rows: [N, K], contiguous.
    """
    if not _by_convolution(rows):
        return torch.mm(grad.t(), rows)
    shape = (grad.shape[1], rows.shape[1], 1, 1)
    product: Tensor = conv2d_weight(  # type: ignore[no-untyped-call]
        _as_pixels(rows), shape, _as_pixels(grad)
    )
    return product.reshape(shape[:2])


def _by_convolution(rows: Tensor) -> bool:
    return (
        rows.device.type == "cpu"
        and rows.dtype == torch.float32
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and rows.numel() > 0
    )


def _as_pixels(rows: Tensor) -> Tensor:
    """View rows as the pixels of an image, [1, K, h, w] channels last, as square as they divide."""
    count = rows.shape[0]
    height = next(h for h in range(int(count**0.5), 0, -1) if count % h == 0)
    return rows.view(1, height, count // height, -1).permute(0, 3, 1, 2)
