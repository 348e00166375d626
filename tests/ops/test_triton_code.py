# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""What the compiler makes of the Triton kernels: registers, local memory, instructions, graphs."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

ARCHS = ["80", "90"]
# As written beside each kernel.
REGISTERS = {
    "forward_kernel": 208,
    "points_backward_kernel atomics": 224,
    "points_backward_kernel records": 184,
    "place_kernel records": 32,
    "gather_kernel records": 64,
    "embed_kernel": 128,
    "table_gradient_kernel": 64,
}


def start(script: str, *arguments: str) -> subprocess.Popen[str]:
    """Start a script that needs Triton's compiler; here the interpreter may be on."""
    command = [sys.executable, str(Path(__file__).with_name(script)), *arguments]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment)


def output(process: subprocess.Popen[str]) -> str:
    out, errors = process.communicate()
    assert process.returncode == 0, errors[-5000:]
    return out


@cache
def usages() -> dict[str, dict[str, dict[str, int]]]:
    """Return {architecture: {configuration and kernel: usage}}; both are compiled at once."""
    running = {arch: start("compile_triton.py", arch) for arch in ARCHS}
    return {arch: json.loads(output(process)) for arch, process in running.items()}


@pytest.mark.parametrize("arch", ARCHS)
def test_kernels_spill_nothing_and_keep_to_their_registers(arch: str) -> None:
    faults = {}
    for name, usage in usages()[arch].items():
        kernel = name.split(" ", 3)[3]
        if usage["local"] or usage["registers"] > REGISTERS[kernel]:
            faults[name] = usage
    assert len(usages()[arch]) == 5 * 12 + 2 + 2 * 9
    assert not faults


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("form", ["grid", "classic"])
def test_forward_takes_at_most_80_instructions_for_a_query_and_head(arch: str, form: str) -> None:
    usage = usages()[arch][f"extractor_b {form} *bf16 forward_kernel"]
    assert 40 < instructions_per_query(usage) <= 80


def instructions_per_query(usage: dict[str, int]) -> float:
    # All is straight-line code: every warp of a program executes it once.
    return usage["instructions"] * usage["warps"] / usage["rows"]


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(("channels", "most"), [(24, 80), (40, 160)])
def test_forward_of_heads_between_powers_of_two_costs_as_the_next_power(
    arch: str, channels: int, most: int
) -> None:
    usage = usages()[arch][f"extractor_{channels} grid *bf16 forward_kernel"]
    assert 40 < instructions_per_query(usage) <= most


BACKWARD = "points_backward_kernel: grad_points, grad_weights, total"
DIFFERENTIATED = (
    "points_backward_kernel: cell_of_point, grad_points, grad_weights, points_in_cell, "
    "rank_of_point, records"
)
CONVOLUTION = ["convolve_kernel: out", "convolve_kernel: out", "weight_gradient_kernel: partial"]
FORWARD = [
    "embed_kernel: out",
    "forward_kernel: out",
    "forward_kernel: logsumexp, out",
    "forward_kernel: out",
    "convolve_kernel: out",
]
GRAPHS = {
    "by rule": ["forward_kernel: out", BACKWARD],
    "classic": ["forward_kernel: out", BACKWARD],
    "dynamic": ["forward_kernel: out"],
    "records": [
        "forward_kernel: out",
        DIFFERENTIATED,
        "place_kernel: sorted_records",
        "gather_kernel: grad_value",
    ],
    "reference": [f"vitadapter_fast.ms_deform_attn_grid{end}.default" for end in ("", "_backward")],
    "exported": ["vitadapter_fast.ms_deform_attn_grid.default"],
    # Where torch cannot tell what a kernel writes it takes all inputs for written, weights too.
    "dynamic channels": ["embed_kernel: out", "convolve_kernel: out"],
    "trained": {
        "forward": FORWARD,
        "backward": [
            *CONVOLUTION,
            DIFFERENTIATED,
            "place_kernel: sorted_records",
            "gather_kernel: grad_value",
            "query_gradient_kernel: grad_qkv, products",
            "key_gradient_kernel: grad_qkv",
            BACKWARD,
            "table_gradient_kernel: out",
        ],
    },
    # Four maps, and no weight that is written back.
    "packaged": [4, FORWARD],
}


def test_compilers_see_kernels_and_what_they_write_and_export_sees_operators() -> None:
    assert json.loads(output(start("trace_triton.py")).splitlines()[-1]) == GRAPHS


@cache
def keys() -> dict[str, dict[str, int]]:
    return json.loads(output(start("count_keys.py")).splitlines()[-1])


def test_sixty_sizes_and_batches_compile_each_kernel_once() -> None:
    once = {
        "embed_kernel": 1,
        "forward_kernel": 3,  # injector, extractor, windows
        "convolve_kernel": 3,
        "weight_gradient_kernel": 1,
        "points_backward_kernel": 2,
        "gather_kernel": 1,
        "query_gradient_kernel": 1,
        "key_gradient_kernel": 1,
        "table_gradient_kernel": 1,
    }
    # Records are float32 with either, so bfloat16 has compiled what places them.
    assert keys() == {"bfloat16": once | {"place_kernel": 1}, "float32": once}
