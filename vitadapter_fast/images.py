# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""What images may be: limits of sizes and batches, and the colors that the ViTs were trained on."""

from numbers import Integral

MIN_SIZE = 32
# Beyond it an image has more elements than torch can count the bytes of.
MAX_SIZE = 65536
MAX_BATCH = 65536
# Of red, green and blue in [0, 1], over ImageNet: for DINOv2, and DINOv3 trained on LVD-1689M.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
# For DINOv3 trained on satellite images, SAT-493M.
SAT_MEAN = (0.430, 0.411, 0.296)
SAT_STD = (0.213, 0.156, 0.143)


def is_whole(value: object) -> bool:
    """Return whether a value is a whole number, of Python or NumPy; True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)
