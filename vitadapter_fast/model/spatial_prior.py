# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Image in; features at 1/4 and prior tokens at 1/8, 1/16 and 1/32 out."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import bands
from .grid import map_to_tokens
from .norm import as_affine, is_constant, make_norm, normalize
from .plain import has_hooks, is_plain


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

    def forward(
        self, image: Tensor, level_embed: Tensor, project: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Return the features at 1/4, [B, C, H / 4, W / 4], and prior tokens, [B, Q, C].

        Args:
            image: [B, I, H, W] with H and W multiples of 32.
            level_embed: [3, C], added to the tokens at 1/8, 1/16 and 1/32, which are concatenated
                in that order.
            project: Whether ``fc1`` is applied. If not, the features at 1/4 are [B, inplanes,
                H / 4, W / 4] and the caller projects them, into the map that it adds them to.
        """
        # Channels last: the fastest for convolutions on CPUs and tensor cores, and tokens already.
        at_4 = conv_norm_relu(image.contiguous(memory_format=torch.channels_last), self.stem)
        at_8 = conv_norm_relu(at_4, self.conv2)
        at_16 = conv_norm_relu(at_8, self.conv3)
        at_32 = conv_norm_relu(at_16, self.conv4)
        levels = zip((self.fc2, self.fc3, self.fc4), (at_8, at_16, at_32), level_embed, strict=True)
        tokens = [_project(level, layer, embed) for layer, level, embed in levels]
        return self.fc1(at_4) if project else at_4, torch.cat(tokens, dim=1)


def conv_norm_relu(x: Tensor, layers: nn.Sequential) -> Tensor:
    """Run convolutions, each followed by a norm and ReLU, and what else ``layers`` holds.

    A batch norm that uses its running statistics is folded into its convolution.
    """
    if has_hooks(layers):
        result: Tensor = layers(x)
        return result
    if bands.take(x) and (chain := _as_chain(layers)) is not None:
        return bands.in_bands(x, chain)
    rest = iter(layers)
    for layer in rest:
        if not isinstance(layer, nn.Conv2d):
            x = layer(x)
            continue
        norm, relu = next(rest), next(rest)
        if is_constant(norm) and is_plain(layer, nn.Conv2d):
            weight, bias = _folded(layer, norm)
            x = relu(F.conv2d(x, weight, bias, layer.stride, layer.padding))
        elif type(relu) is nn.ReLU and not has_hooks(relu):
            x = normalize(norm, layer(x), relu=True)
        else:
            x = relu(norm(layer(x)))
    return x


def _folded(layer: nn.Conv2d, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a convolution without bias and a constant norm after it."""
    scale, shift = as_affine(norm)
    return layer.weight * scale[:, None, None, None], shift


def _as_chain(layers: nn.Sequential) -> list[bands.Layer] | None:
    """Return convolutions with constant norm and ReLU, and max pools, as a chain; None for others.

    ReLU leaves nothing below zero, so zeros around a map are as good to a max pool as its own.
    """
    chain: list[bands.Layer] = []
    rest = iter(layers)
    for layer in rest:
        if type(layer) is nn.MaxPool2d and chain and not has_hooks(layer):
            pool = partial(F.max_pool2d, kernel_size=3, stride=2, padding=(0, 1))
            chain.append(bands.Layer(pool, 2, chain[-1].channels))
            continue
        norm, relu = next(rest, layer), next(rest, layer)
        if not (is_plain(layer, nn.Conv2d) and is_constant(norm)):
            return None
        if type(relu) is not nn.ReLU or has_hooks(relu):
            return None
        assert isinstance(layer, nn.Conv2d)
        run = partial(_conv_relu, *_folded(layer, norm), layer.stride)
        chain.append(bands.Layer(run, layer.stride[0], layer.out_channels))
    return chain if len(chain) > 1 else None


def _conv_relu(weight: Tensor, bias: Tensor, stride: tuple[int, ...], x: Tensor) -> Tensor:
    return F.conv2d(x, weight, bias, stride, (0, 1)).relu_()


def _project(feature_map: Tensor, layer: nn.Conv2d, embed: Tensor) -> Tensor:
    """1 x 1 convolution of a map to tokens, [B, h * w, C], plus an embedding, [C]."""
    if not is_plain(layer, nn.Conv2d) or layer.bias is None:
        return map_to_tokens(layer(feature_map)) + embed
    return map_to_tokens(F.conv2d(feature_map, layer.weight, layer.bias + embed))


def _conv_norm_relu(in_channels: int, out_channels: int, stride: int, norm: str) -> list[nn.Module]:
    """A list, not a module: upstream numbers the layers in one sequence."""
    return [
        nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False),
        make_norm(norm, out_channels),
        nn.ReLU(inplace=True),
    ]
