# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The whole backbone, S to g: forward in eval, and a training step's forward and backward."""

from typing import Any

from backbones import FORWARD_ONLY, PLAIN, SDPA_COMPILED, contenders
from worker import PASSES, Spec
from workloads import Row

from vitadapter_fast.ops.int8_linear import cpu as int8_kernel

Shape = tuple[str, tuple[int, int], int]
GPU_SIZES = ((512, 512), (1024, 1024), (800, 1344))
SIZES: dict[str, list[Shape]] = {
    "smoke": [("s", (64, 64), 1)],
    "cpu": [
        *(("s", (side, side), 1) for side in (224, 512)),
        ("b", (224, 224), 1),
        ("b", (512, 512), 1),
        ("l", (224, 224), 1),
        ("g", (224, 224), 1),
        ("dinov3-s", (512, 512), 1),
    ],
    # Does the time of a pixel stay what it is? Ours alone, and where malloc keeps what is freed.
    "cpu_sizes": [
        *(("s", (side, side), batch) for side in (224, 512) for batch in (1, 2, 8)),
        *(("s", size, 1) for size in ((800, 1344), (1024, 1024))),
    ],
    "gpu": [
        *((model, hw, batch) for model in "sb" for hw in GPU_SIZES for batch in (1, 8)),
        *((model, (1024, 1024), batch) for model in "lg" for batch in (1, 8)),
    ],
    "gpu_full": [(name, hw, batch) for name in "sblg" for hw in GPU_SIZES for batch in (1, 2, 8)],
}
# Of scale cpu, in bfloat16 as well.
LOW: list[Shape] = [
    *((model, (512, 512), 1) for model in ("s", "b", "dinov3-s")),
    *((model, (224, 224), 1) for model in "lg"),
]
# Of scale cpu, with products of 8 bits as well; where there is no kernel for them, nobody would.
ROUNDED = [shape for shape in LOW if shape[0] in "sblg"]
# With --compiled, by a compiler as well, which takes minutes for each row.
BY_COMPILER = [shape for shape in LOW if shape[0] in "sbl"]
# What scale gpu has room for: float32 at one size; a compiler at one shape that waits for the host,
# and at one that does not.
FLOAT32: list[Shape] = [("s", (1024, 1024), 1), ("b", (1024, 1024), 1)]
COMPILED: list[Shape] = [("s", (1024, 1024), 1), ("b", (1024, 1024), 8)]


def cases(scale: str, device: str) -> list[Row]:
    found = []
    for shape in SIZES[scale]:
        for dtype in _dtypes(scale, shape, device):
            names = contenders(shape[0], scale, dtype)
            if scale == "gpu" and shape[1] != (1024, 1024):
                names.remove(PLAIN)  # with SDPA it is the faster one
            if scale == "cpu" and shape not in BY_COMPILER and SDPA_COMPILED in names:
                names.remove(SDPA_COMPILED)
            if scale == "gpu" and dtype == "bfloat16" and shape in COMPILED:
                names.append(SDPA_COMPILED)
            found += _rows(names, device, shape, dtype)
    return found


def _dtypes(scale: str, shape: Shape, device: str) -> tuple[str, ...]:
    if device == "cuda":
        is_left_out = scale == "gpu" and shape not in FLOAT32
        return ("bfloat16",) if is_left_out else ("bfloat16", "float32")
    if scale != "cpu":
        return ("float32",)
    is_rounded = shape in ROUNDED and int8_kernel.processor_reason() is None
    return "float32", *["bfloat16"] * (shape in LOW), *["int8"] * is_rounded


def _rows(names: list[str], device: str, shape: Shape, dtype: str) -> list[Row]:
    model, (h, w), batch = shape
    facts = {"model": model, "image_hw": (h, w), "batch": batch}
    name = f"{model}@{h if h == w else f'{h}x{w}'}" + (f" x{batch}" if batch > 1 else "")
    rows = []
    for contender in names:
        spec = Spec("backbone", contender, facts, dtype, device)
        is_trained = contender not in FORWARD_ONLY and dtype != "int8"
        passes = PASSES if is_trained else PASSES[:1]
        rows += [Row(spec, name, each) for each in passes]
    return rows


def test_backbone(row: Row, timed: Any) -> None:
    timed(row)
