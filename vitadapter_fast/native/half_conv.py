# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Maps in, 3 x 3 convolutions or gradients of weights out, in products of 16 bits.

csrc/half_conv: as in ``half_linear``, with a factor for each row of a map. 64 channels to 64 of
[83, 256] on two cores of an Intel Xeon (model 207): 2.9 ms, oneDNN in float32 4.8, in bfloat16 9.
"""

import torch
from torch import Tensor

from . import extension, token_rows

CHANNELS = 16  # what the channels of a map must divide by


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    *,
    has_relu: bool,
    pads_rows: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return a convolution of ``x``, [B, C, H', W'], channels last; records no gradients.

    Args:
        x: [B, K, H, W], float32 or bfloat16, K a multiple of 16; read where it lies if it is
            channels last but for the strides of images and rows. A row with a number that is not
            finite gives NaN.
        weight: [C, K, 3, 3].
        bias: [C] or None.
        stride: 1 or 2.
        has_relu: Whether ReLU of the result is returned.
        pads_rows: Whether there is a row of zeros above and below, as columns are on both sides.
        dtype: Of the result, float32 or bfloat16.
    """
    (B, K, H, W), C = x.shape, weight.shape[0]
    x = _with_pixels(x)
    sizes = {"channels": (B, K, C), "hw": (H, W), "stride": stride, "pads_rows": pads_rows}
    module, _ = extension.load()
    assert module is not None
    nbytes = module.half_conv_bytes(**sizes)
    out_h = (H + (2 if pads_rows else 0) - 3) // stride + 1
    out = x.new_empty((B, out_h, (W - 1) // stride + 1, C), dtype=dtype)
    extension.launch(
        "half_conv_cpu",
        x=x,
        x_dtype=extension.DTYPE_CODES[x.dtype],
        x_strides=(x.stride(0), x.stride(2)),
        weight=weight.detach().float().permute(0, 2, 3, 1).contiguous(),
        bias=None if bias is None else bias.detach().float().contiguous(),
        has_relu=has_relu,
        **sizes,
        halves=token_rows.kept_bytes(nbytes),
        halves_bytes=nbytes,
        out=extension.in_huge_pages(out),
        out_dtype=extension.DTYPE_CODES[dtype],
        num_threads=torch.get_num_threads(),
    )
    return out.permute(0, 3, 1, 2)


def weight_gradient(grad: Tensor, x: Tensor, stride: int, *, dtype: torch.dtype) -> Tensor:
    """Return the gradient of the weight, [C, K, 3, 3]; the map is padded with zeros all around.

    Args:
        grad: That of the result, [B, C, H', W'], float32 or bfloat16; read where it lies as ``x``.
            A channel with a number that is not finite gives NaN.
        x: What was convolved, [B, K, H, W], likewise.
        stride: 1 or 2.
        dtype: Of the result.
    """
    (B, K, H, W), C = x.shape, grad.shape[1]
    x, grad = _with_pixels(x), _with_pixels(grad)
    sizes = {"channels": (B, K, C), "hw": (H, W), "stride": stride}
    module, _ = extension.load()
    assert module is not None
    nbytes = module.half_conv_gradient_bytes(**sizes)
    out = x.new_empty((C, 3, 3, K), dtype=torch.float32)
    extension.launch(
        "half_conv_gradient_cpu",
        x=x,
        x_dtype=extension.DTYPE_CODES[x.dtype],
        x_strides=(x.stride(0), x.stride(2)),
        grad=grad,
        grad_dtype=extension.DTYPE_CODES[grad.dtype],
        grad_strides=(grad.stride(0), grad.stride(2)),
        **sizes,
        parts=token_rows.kept_bytes(nbytes),
        parts_bytes=nbytes,
        out=out,
        num_threads=torch.get_num_threads(),
    )
    return out.permute(0, 3, 1, 2).to(dtype)


def _with_pixels(level: Tensor) -> Tensor:
    """Return a map whose rows of pixels are dense, channels last."""
    level = level.resolve_neg()  # which may lay it out anew
    if level.stride(1) == 1 and level.stride(3) == level.shape[1]:
        return level
    return level.contiguous(memory_format=torch.channels_last)
