# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Patch embedding, windows, rotary positions, depthwise convolution, norm, 8-bit products."""

from typing import Any

from workloads import Row, rows

from vitadapter_fast.ops.int8_linear import cpu as int8_kernel

SIZES = {
    "smoke": {"s": [(128, 1)]},
    "cpu": {"s": [(512, 1), (1024, 1)], "l": [(512, 1)]},
    "gpu": {"s": [(1024, 8)]},
    "gpu_full": {model: [(512, 1), (1024, 1), (1024, 8)] for model in "sblg"},
}


def cases(scale: str, device: str) -> list[Row]:
    shapes = {
        f"{model}@{image}" + (f" x{batch}" if batch > 1 else ""): {
            "model": model,
            "image": image,
            "batch": batch,
        }
        for model, sizes in SIZES.get(scale, {}).items()
        for image, batch in sizes
    }
    kinds = ["patch_embed", "window_attention", "dwconv_gelu"]
    if scale != "gpu":  # which has 25 minutes
        kinds.append("rope")
    dtypes = ("bfloat16",) if scale == "gpu" else ()
    found = [row for kind in kinds for row in rows(kind, device, shapes, dtypes)]
    if device == "cpu":  # GPUs run torch's
        found += rows("batch_norm", device, shapes)
        found += rows("feed_forward", device, shapes, ("float32", "bfloat16"))
        found += rows("stem_convolution", device, shapes, ("float32", "bfloat16"))
    if device == "cpu" and int8_kernel.processor_reason() is None:
        found += rows("int8_linear", device, shapes)
    return found


def test_operator(row: Row, timed: Any) -> None:
    timed(row)
