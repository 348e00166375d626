# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The long tests, in two groups that take about as long, by folder and file."""

from pathlib import Path

import pytest

_TESTS = Path(__file__).resolve().parents[1]

# What a run of all tests leaves out unless it is asked for: long, and rarely of news.
# A file or test that is named on the command line runs all the same.
THOROUGH = {
    # The compiled kernels: sanitizers, random and hostile calls, machine code, builds; and whatever
    # can fail around them: disks, memory, compilers, processes.
    "kernels": {
        "ops": [
            *("cuda_code", "cuda_emulation", "cuda_on_cpu", "dwconv_gelu_cuda_on_cpu"),
            *("hostile_calls", "patch_embed_cuda_on_cpu", "random_cases", "rope_cuda_on_cpu"),
            "sanitizers",
        ],
        ".": ["build", "faults", "supply_chain", "toolkits"],
    },
    # Triton, compiled models, export, costs, benchmarks; and single tests marked as thorough.
    "others": {
        "checks": ["info"],
        "commands": ["export_command"],
        "costs": ["cost", "flops"],
        "export": ["export_onnx", "export_program"],
        "fused": ["touched"],
        "model": ["model_compiled", "model_distributed", "model_random"],
        "ops": [
            *("dwconv_gelu_triton", "patch_embed_triton", "triton_code", "triton_interpreter"),
            "window_attention_triton",
        ],
        ".": [
            *("benchmarks", "benchmarks_clocks", "benchmarks_overhead", "benchmarks_runs"),
            *("concurrency", "determinism", "memory"),
        ],
        "weights": ["hints"],
    },
}
GROUPS = tuple(THOROUGH)


def group_of(item: pytest.Item) -> str | None:
    """Return the group of a long test, or None for one of the core."""
    folder = item.path.parent.relative_to(_TESTS).as_posix()
    name = item.path.stem.removeprefix("test_")
    for group, files in THOROUGH.items():
        if name in files.get(folder, []):
            return group
    return "others" if item.get_closest_marker("thorough") is not None else None
