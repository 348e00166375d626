# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Image in; a map at 1/4 and prior tokens at 1/8, 1/16 and 1/32 out."""

import torch
from torch import Tensor, nn

from .. import fused
from ..fused.maps import map_to_tokens
from .norm import make_norm


@fused.readable(
    stem=nn.Sequential,
    conv2=nn.Sequential,
    conv3=nn.Sequential,
    conv4=nn.Sequential,
    fc1=nn.Conv2d,
    fc2=nn.Conv2d,
    fc3=nn.Conv2d,
    fc4=nn.Conv2d,
)
class SpatialPrior(nn.Module):
    """Read local detail from the image with convolutions, beside the ViT.

    Source: Chen et al. 2022, arXiv:2205.08534, section 3.3.
    """

    def __init__(self, in_chans: int, inplanes: int, embed_dim: int, norm: str) -> None:
        """Create the stem, three stages of stride 2, and a 1 x 1 convolution for each map.

        Args:
            in_chans: Channels of the image.
            inplanes: Channels of the stem; the stages have 2, 4 and 4 times as many.
            embed_dim: Channels of the results.
            norm: Normalization, as in ``make_norm``.
        """
        super().__init__()
        self.stem = nn.Sequential(
            *_conv_norm_relu(in_chans, inplanes, 2, norm),
            *_conv_norm_relu(inplanes, inplanes, 1, norm),
            *_conv_norm_relu(inplanes, inplanes, 1, norm),
            nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
        )
        self.conv2 = nn.Sequential(*_conv_norm_relu(inplanes, 2 * inplanes, 2, norm))
        self.conv3 = nn.Sequential(*_conv_norm_relu(2 * inplanes, 4 * inplanes, 2, norm))
        self.conv4 = nn.Sequential(*_conv_norm_relu(4 * inplanes, 4 * inplanes, 2, norm))
        self.fc1 = nn.Conv2d(inplanes, embed_dim, 1)
        self.fc2 = nn.Conv2d(2 * inplanes, embed_dim, 1)
        self.fc3 = nn.Conv2d(4 * inplanes, embed_dim, 1)
        self.fc4 = nn.Conv2d(4 * inplanes, embed_dim, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return a map, [B, C, H / 4, W / 4], and tokens at 1/8, 1/16 and 1/32, [B, h * w, C].

        Args:
            image: [B, I, H, W] with H and W multiples of 32.
        """
        # Channels last: the fastest for convolutions on CPUs and tensor cores, and tokens already.
        image = image.contiguous(memory_format=torch.channels_last)
        if fused.runs(fused.spatial_prior, self, image):
            return fused.spatial_prior.forward(self, image)
        at_4 = self.stem(image)
        at_8 = self.conv2(at_4)
        at_16 = self.conv3(at_8)
        at_32 = self.conv4(at_16)
        return (
            self.fc1(at_4),
            map_to_tokens(self.fc2(at_8)),
            map_to_tokens(self.fc3(at_16)),
            map_to_tokens(self.fc4(at_32)),
        )


def _conv_norm_relu(in_channels: int, out_channels: int, stride: int, norm: str) -> list[nn.Module]:
    """A list, not a module: upstream numbers the layers in one sequence."""
    return [
        nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False),
        make_norm(norm, out_channels),
        nn.ReLU(),
    ]
