# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The whole backbone, S to g: forward in eval, and a training step's forward and backward."""

from typing import Any

from backbones import ARITHMETIC, contenders
from worker import PASSES, Spec
from workloads import Row

GPU_SIZES = ((512, 512), (800, 1344), (1024, 1024))
SIZES = {
    "smoke": [("s", (64, 64), 1)],
    "cpu": [
        *(("s", (side, side), 1) for side in (224, 512)),
        ("b", (224, 224), 1),
        ("b", (512, 512), 1),
        ("l", (224, 224), 1),
        ("g", (224, 224), 1),
    ],
    # Does the time of a pixel stay what it is? Ours alone.
    "cpu_sizes": [
        *(("s", (side, side), batch) for side in (224, 512) for batch in (1, 2, 8)),
        ("s", (800, 1344), 1),
    ],
    "gpu": [(model, hw, batch) for model in "sblg" for hw in GPU_SIZES for batch in (1, 2, 8)],
}


def cases(scale: str, device: str) -> list[Row]:
    dtypes = ("bfloat16", "float32") if device == "cuda" else ("float32",)
    found = []
    for model, (h, w), batch in SIZES[scale]:
        shape = {"model": model, "image_hw": (h, w), "batch": batch}
        name = f"{model}@{h if h == w else f'{h}x{w}'}" + (f" x{batch}" if batch > 1 else "")
        for dtype in dtypes:
            for contender in contenders(model, scale):
                spec = Spec("backbone", contender, shape, dtype, device)
                passes = PASSES[:1] if contender == ARITHMETIC else PASSES
                found += [Row(spec, name, each) for each in passes]
    return found


def test_backbone(row: Row, timed: Any) -> None:
    timed(row)
