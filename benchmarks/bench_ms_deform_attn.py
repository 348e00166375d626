# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Multi-scale deformable attention: the op, and the block from the projections' results on."""

from typing import Any

from workloads import Row, rows

MODELS = {
    "smoke": {"s": 128},
    "cpu": {"s": 512, "b": 512, "l": 512, "g": 512},
    "gpu": {"s": 1024},
}
GPU_FULL = [(m, i, b) for m in "sblg" for i in (512, 1024) for b in (1, 2)]


def cases(scale: str, device: str) -> list[Row]:
    shapes: dict[str, dict[str, Any]] = {}
    sizes = [(model, image, 1) for model, image in MODELS.get(scale, {}).items()]
    for model, image, batch in GPU_FULL if scale == "gpu_full" else sizes:
        for side in ("injector", "extractor"):
            for entry in ("op", "block"):
                name = f"{model}@{image} {side} {entry}" + (f" x{batch}" if batch > 1 else "")
                facts = {"model": model, "image": image, "batch": batch}
                shapes[name] = {**facts, "side": side, "entry": entry}
    return rows("ms_deform_attn", device, shapes, ("bfloat16",) if scale == "gpu" else ())


def test_ms_deform_attn(row: Row, timed: Any) -> None:
    timed(row)
