# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A gray picture of more than 8 bits in, the values that are black and white in it out.

The rule: what the file declares, else what the values say, however they are stored. Black is 0.
White is the next of the full scales 1, 255 and 65535 if the brightest values reach half of it; if
they stay below a quarter, as those of 12 bits do in 16, they are white themselves; between the two
it changes gradually, so that no picture is at a cliff. Up to 1, white is 1. Where values are
negative, black lies below 0 by the same rule: -1 to 1 keeps both halves. The brightest and the
darkest 0.5 % of the pixels do not count, so that no single one decides; nor does the value that a
GeoTIFF has where nothing was measured (GDAL_NODATA). Where a TIFF says that its white is 0
(PhotometricInterpretation), the two values change places.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

# Of TIFF: the range of the values, for each sample. Its older tags of similar names are statistics.
_BITS_PER_SAMPLE, _S_MIN_SAMPLE_VALUE, _S_MAX_SAMPLE_VALUE = 258, 340, 341
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0
_GDAL_NODATA = 42113

_TAIL = 0.005
_ROWS = 256
_REMEDY = "--range LOW HIGH sets others"
# The end of float32, where a file may put its range, says nothing.
_ENDLESS = 1e37
# Brightest value -> white, both in powers of 2, linear between: a percent more of one is never more
# than two of the other.
_FULL_SCALES = np.log2([[1, 1], [64, 64], [128, 255], [255, 255], [16384, 16384], [32768, 65535]])
_BRIGHTEST, _WHITE = _FULL_SCALES.T


class ValueRange(NamedTuple):
    """The values that are black and white, either of which may be the lower; and who says so."""

    black: float
    white: float
    source: str


def value_range(
    image: Image.Image, values: npt.NDArray[Any], declared: tuple[float, float] | None
) -> ValueRange | None:
    """Return the range of a gray picture.

    Args:
        image: As it was opened, for what the file declares.
        values: Its pixels.
        declared: What the user says, which comes before all else.

    Returns:
        The range, or None if no pixel is a finite number.
    """
    found = _ascending(image, values, declared)
    # Pillow inverts such pictures itself, but only those of 8 bits.
    if found is None or getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) != _WHITE_IS_ZERO:
        return found
    return ValueRange(
        found.white, found.black, f"{found.source}; the file has white at the low end"
    )


def _ascending(
    image: Image.Image, values: npt.NDArray[Any], declared: tuple[float, float] | None
) -> ValueRange | None:
    if declared is not None:
        return ValueRange(*declared, "as --range says")
    found = _declared_by_file(image)
    if found is not None:
        return ValueRange(*found, f"as the file declares; {_REMEDY}")
    # As text; GeoTIFFs fill what was not measured with it.
    nothing = _number(getattr(image, "tag_v2", {}).get(_GDAL_NODATA))
    finite = values[np.isfinite(values) & (True if nothing is None else values != nothing)]
    if finite.size == 0:
        return None
    # These methods never take the one pixel that is farthest out, which interpolation would.
    darkest = float(np.quantile(finite, _TAIL, method="higher"))
    brightest = float(np.quantile(finite, 1 - _TAIL, method="lower"))
    return ValueRange(0.0 - _black(-darkest), white(brightest), f"by its pixels; {_REMEDY}")


def white(brightest: float) -> float:
    """Return the value that is white where the brightest is this one."""
    if brightest <= 1:
        return 1.0
    if brightest >= 65535:
        return brightest
    return float(2 ** np.interp(math.log2(brightest), _BRIGHTEST, _WHITE))


def _black(depth: float) -> float:
    """Return how far below 0 black is where the darkest value is this far below."""
    # Up to a half from 0 on, not at once: rounding leaves specks of -0.001 in pictures from 0 to 1.
    return white(depth) if depth >= 1 else min(1.0, 2 * max(0.0, depth))


def to_gray(values: npt.NDArray[Any], black: float, white: float) -> npt.NDArray[np.uint8]:
    """Return values [H, W] as gray from 0 at ``black`` to 255 at ``white``; NaN is 0."""
    gray = np.empty(values.shape, dtype=np.uint8)
    # Halved, because the difference of two large numbers may be infinite.
    span = white / 2 - black / 2
    low, high = min(black, white), max(black, white)
    # In parts, because float64 takes eight times the memory of the result.
    for top in range(0, len(values), _ROWS):
        part = values[top : top + _ROWS].astype(np.float64)
        share = (np.clip(part, low, high) / 2 - black / 2) / span
        gray[top : top + _ROWS] = np.nan_to_num(share, nan=0.0) * 255 + 0.5
    return gray


def _declared_by_file(image: Image.Image) -> tuple[float, float] | None:
    tags = getattr(image, "tag_v2", {})
    low, high = _number(tags.get(_S_MIN_SAMPLE_VALUE)), _number(tags.get(_S_MAX_SAMPLE_VALUE))
    if low is not None and high is not None and low < high and max(-low, high) < _ENDLESS:
        return low, high
    bits = _number(tags.get(_BITS_PER_SAMPLE))
    if bits is not None and 8 < bits < 16:
        return 0.0, 2.0**bits - 1
    return None


def _number(value: object) -> float | None:
    """Return a tag's value as a finite number, of a sequence the first."""
    if isinstance(value, (tuple, list)):
        value = value[0] if value else None
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None
    return number if math.isfinite(number) else None
