# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A photo and its feature maps in, one picture of them out: principal components as colors."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

_WIDTH = 1600
_MARGIN = 24
_GAP = 16
_TITLE_SIZE = 30
_CAPTION_SIZE = 20
_TITLE_HEIGHT = 56
_CAPTION_HEIGHT = 30
_INK, _FAINT, _PAPER = "#16191d", "#6b727b", "#ffffff"
_NOTE = "colors: first three principal components of each level"

# Beyond these, photo and 2 x 2 panels side by side waste the paper.
_WIDE, _TALL = 0.4, 1.5

_BORDER = 0.1
_PERCENTILES = (1.0, 99.0)


class Panel(NamedTuple):
    """Place of one panel in the picture, in pixels."""

    left: int
    top: int
    width: int
    height: int


def pca_colors(feature_map: Tensor, *, cell: int = 1, like: Tensor | None = None) -> Tensor:
    """Color the positions of a feature map by their first three principal components.

    Components and color range are fitted without the outer tenth of the map, where the zero padding
    of the convolutions would take them over; the range goes from percentile 1 to 99.

    Args:
        feature_map: [C, h, w], floating.
        cell: Side of the cells whose positions get components together, but one loading each. 2
            suits the output of a transposed convolution of stride 2, which has another kernel at
            each of the four positions.
        like: Colors [3, h', w'] of another map of the photo. The sign of a component is open; it is
            chosen to resemble these, or else so that few positions are bright.

    Returns:
        Red, green and blue in [0, 1], [3, h, w], float32 on the CPU; 0.5 where a component is
        constant.
    """
    features = torch.nan_to_num(feature_map.detach().float().cpu(), 0.0, 0.0, 0.0)
    C, h, w = features.shape
    peak = features.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    pad = (0, -w % cell, 0, -h % cell)
    cells = F.pixel_unshuffle(F.pad(features[None] / peak, pad, mode="replicate"), cell)[0]
    cells = cells - _inner(cells).mean(dim=(1, 2), keepdim=True)

    loadings = _loadings(_inner(cells).flatten(1).T)  # [C * cell^2, 3]
    shape = (C, cell * cell)
    scores = torch.einsum(
        "cphw,cpk->kphw",
        cells.view(*shape, *cells.shape[1:]),
        loadings.reshape(*shape, 3),
    )
    inside = _inner(scores).flatten(2)
    low, high = (
        torch.from_numpy(np.percentile(inside.numpy(), percentile, axis=2))[..., None, None]
        for percentile in _PERCENTILES
    )
    span = high - low
    # Rounding makes noise of a constant component; scaled up it would look like a feature.
    is_constant = span <= 1e-5
    colors = ((scores - low) / span.clamp(min=1e-5)).clamp(0, 1)
    colors = F.pixel_shuffle(colors.masked_fill(is_constant, 0.5), cell)[:, 0, :h, :w]

    if like is None:
        agreement = inside.pow(3).sum(dim=(1, 2))
    else:
        other = F.interpolate(like[None], size=(h, w), mode="area")[0]
        agreement = (_inner_contrast(colors) * _inner_contrast(other)).sum(dim=(1, 2))
    return torch.where(agreement[:, None, None] < 0, 1 - colors, colors).float()


def draw_features(
    pixels: npt.NDArray[np.uint8],
    maps: Sequence[Tensor],
    strides: Sequence[int],
    *,
    title: str,
    name: str,
) -> Image.Image:
    """Draw a photo beside its four feature maps.

    Args:
        pixels: The photo as the model saw it, [H, W, 3].
        maps: Four maps [C, ceil(H / stride), ceil(W / stride)].
        strides: Stride of each map.
        title: Heading of the picture.
        name: Caption of the photo.

    Returns:
        An RGB image, 1600 pixels wide.
    """
    H, W = pixels.shape[:2]
    panels, height = layout(H / W)
    picture = Image.new("RGB", (_WIDTH, height), _PAPER)
    draw = ImageDraw.Draw(picture)

    note_font = _font(_CAPTION_SIZE)
    title_font = _font(_TITLE_SIZE, title)
    room = _WIDTH - 2 * _MARGIN - note_font.getlength(_NOTE) - 2 * _GAP
    baseline = _MARGIN + _TITLE_SIZE - 6
    draw.text((_MARGIN, baseline), _cut(title, title_font, room), _INK, title_font, "ls")
    draw.text((_WIDTH - _MARGIN, baseline), _NOTE, _FAINT, note_font, "rs")

    captions = [(name, f"{H} x {W}")]
    images = [Image.fromarray(pixels).resize(panels[0][2:], Image.Resampling.LANCZOS)]
    colors: Tensor | None = None
    for level, (feature_map, stride) in enumerate(zip(maps, strides, strict=True), start=1):
        # Level 1 is the one that a transposed convolution of stride 2 makes.
        colors = pca_colors(feature_map, cell=2 if level == 1 else 1, like=colors)
        images.append(_enlarge(colors, (H / stride, W / stride), panels[level]))
        shape = " x ".join(str(size) for size in feature_map.shape)
        captions.append((f"Level {level} · stride {stride}", shape))

    size = _caption_size(captions, panels)
    right_font = _font(size)
    for panel, image, (left, right) in zip(panels, images, captions, strict=True):
        picture.paste(image, (panel.left, panel.top))
        left_font = _font(size, left.replace("·", ""))
        room = panel.width - right_font.getlength(right) - _GAP
        baseline = panel.top + panel.height + _CAPTION_HEIGHT - 7
        draw.text((panel.left, baseline), _cut(left, left_font, room), _INK, left_font, "ls")
        draw.text((panel.left + panel.width, baseline), right, _FAINT, right_font, "rs")
    return picture


def layout(aspect: float) -> tuple[list[Panel], int]:
    """Return the places of the photo and of the four levels, and the height of the picture.

    Args:
        aspect: Height of the photo over its width.
    """
    inner = _WIDTH - 2 * _MARGIN
    top = _TITLE_HEIGHT + _MARGIN // 2
    row = _CAPTION_HEIGHT + _GAP
    if aspect > _TALL:
        width = (inner - 4 * _GAP) // 5
        height = round(width * aspect)
        places = [(_MARGIN + index * (width + _GAP), top) for index in range(5)]
        panels = [Panel(left, top, width, height) for left, top in places]
    elif aspect < _WIDE:
        width = (inner - _GAP) // 2
        height = round(width * aspect)
        photo = Panel(_MARGIN, top, inner, round(inner * aspect))
        panels = [photo, *_square(_MARGIN, top + photo.height + row, width, height, row)]
    else:
        # The photo is as high as two panels and the caption between them.
        width = int((inner - 2 * _GAP - row / aspect) / 4)
        height = round(width * aspect)
        photo_width = inner - 2 * (width + _GAP)
        photo = Panel(_MARGIN, top, photo_width, 2 * height + row)
        left = _MARGIN + photo_width + _GAP
        panels = [photo, *_square(left, top, width, height, row)]
    return panels, panels[-1].top + panels[-1].height + _CAPTION_HEIGHT + _MARGIN // 2


def _square(left: int, top: int, width: int, height: int, row: int) -> list[Panel]:
    lefts = (left, left + width + _GAP)
    return [Panel(x, y, width, height) for y in (top, top + height + row) for x in lefts]


def _loadings(samples: Tensor) -> Tensor:
    """Return the first three right singular vectors of [N, C], zero beyond the smaller size."""
    count = min(8, *samples.shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _, _, vectors = torch.svd_lowrank(samples, q=count, niter=4)
    return F.pad(vectors[:, :3], (0, max(0, 3 - count)))


def _inner(maps: Tensor) -> Tensor:
    top, left = (round(_BORDER * size) for size in maps.shape[-2:])
    return maps[..., top : maps.shape[-2] - top, left : maps.shape[-1] - left]


def _inner_contrast(colors: Tensor) -> Tensor:
    inner = _inner(colors)
    return inner - inner.mean(dim=(1, 2), keepdim=True)


def _enlarge(colors: Tensor, size_hw: tuple[float, float], panel: Panel) -> Image.Image:
    """Enlarge [3, h, w] without blur; the panel shows size_hw positions, the last maybe in part."""
    values = (colors * 255 + 0.5).to(torch.uint8).permute(1, 2, 0).contiguous()
    image = Image.fromarray(values.numpy())
    # Each position first gets whole pixels, of which the panel takes means: squares of uneven size
    # would make a moire of fine structure.
    factor = 2 * math.ceil(panel.width / image.width)
    whole = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    part = (0.0, 0.0, size_hw[1] * factor, size_hw[0] * factor)
    return whole.resize((panel.width, panel.height), Image.Resampling.BOX, box=part)


def _font(size: int, text: str = "") -> ImageFont.FreeTypeFont:
    """Return Pillow's own font, or for text that it lacks letters for, matplotlib's wider one."""
    if text.isascii():
        font = ImageFont.load_default(size)
        assert isinstance(font, ImageFont.FreeTypeFont)
        return font
    from matplotlib import get_data_path

    return ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)


def _caption_size(captions: Sequence[tuple[str, str]], panels: Sequence[Panel]) -> int:
    """Return the largest size at which the captions of the levels fit beneath their panels."""
    for size in range(_CAPTION_SIZE, 11, -1):
        font = _font(size)
        widths = [font.getlength(left) + font.getlength(right) for left, right in captions[1:]]
        if max(widths) + _GAP <= panels[1].width:
            break
    return size


def _cut(text: str, font: ImageFont.FreeTypeFont, room: float) -> str:
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(text + "…") > room:
        text = text[:-1]
    return text + "…"
