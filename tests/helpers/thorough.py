# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The long tests, by folder and file."""

from pathlib import Path

_TESTS = Path(__file__).resolve().parents[1]

# What a run of all tests leaves out unless it is asked for: long, and rarely of news.
# A file or test that is named on the command line runs all the same.
THOROUGH = {
    "checks": ["info"],
    "commands": ["export_command"],
    "export": ["export_onnx", "export_program"],
    "fused": ["touched"],
    "model": ["model_compiled", "model_distributed", "model_random"],
    "ops": [
        *("cuda_code", "cuda_emulation", "cuda_on_cpu", "sanitizers", "triton_code"),
        *("dwconv_gelu_cuda_on_cpu", "patch_embed_cuda_on_cpu", "triton_interpreter"),
        "rope_cuda_on_cpu",
        *("dwconv_gelu_triton", "patch_embed_triton", "window_attention_triton"),
        *("hostile_calls", "random_cases"),
    ],
    ".": [
        *("benchmarks", "benchmarks_clocks", "benchmarks_overhead", "benchmarks_runs"),
        *("build", "concurrency", "determinism", "memory", "supply_chain", "toolkits"),
    ],
}


def is_thorough_file(path: Path) -> bool:
    """Return whether all tests of a file are long."""
    folder = path.parent.relative_to(_TESTS).as_posix()
    return path.stem.removeprefix("test_") in THOROUGH.get(folder, [])
