# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The settings of a model that is small and has every part."""

from typing import Any

TINY: dict[str, Any] = {
    "pretrain_size": 64,
    "img_size": 64,
    "embed_dim": 32,
    "depth": 4,
    "num_heads": 2,
    "conv_inplane": 8,
    "deform_num_heads": 2,
    "deform_ratio": 0.5,
    "interaction_indexes": [[0, 0], [1, 1], [2, 2], [3, 3]],
}
# Windows that do and do not divide the grid, and global attention.
WINDOWED: dict[str, Any] = {
    **TINY,
    "window_attn": [True, False, True, False],
    "window_size": [3, None, 4, None],
}
