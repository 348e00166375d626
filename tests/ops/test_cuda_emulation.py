# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Executing CUDA source on the CPU finds planted faults: csrc/common/cuda_on_cpu.h."""

import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"

PROGRAM = """
#define VITADAPTER_ISA test
#include <cstdio>
#include "common/device.cuh"

struct Params {
  const float* in;
  float* out;
};

// Each block reverses its 64 elements and adds their sum.
__global__ void kernel(const __grid_constant__ Params p) {
  __shared__ float part[64];
  const int at = blockIdx.x * 64 + threadIdx.x;
  part[threadIdx.x] = p.in[at];
  %s
  float sum = 0;
  for (int i = 0; i < 64; ++i) sum += part[i];
  p.out[at] = part[63 - threadIdx.x] + sum;
}

int main() {
  float in[128], out[129] = {};
  for (int i = 0; i < 128; ++i) in[i] = i * i;
  try {
    vitadapter::test::launch("kernel", kernel, {2, 1, 1}, 64, Params{in, out}, 0, nullptr);
  } catch (const std::exception& error) {
    std::printf("error: %%s\\n", error.what());
    return 0;
  }
  for (int block = 0; block < 2; ++block) {
    float sum = 0;
    for (int i = 0; i < 64; ++i) sum += in[64 * block + i];
    for (int i = 0; i < 64; ++i) {
      if (out[64 * block + i] != in[64 * block + 63 - i] + sum) return std::puts("wrong"), 0;
    }
  }
  return std::puts("right"), 0;
}
"""

STATEMENTS = {
    "barrier": ("__syncthreads();", "right"),
    "missing_barrier": ("", "wrong"),
    "barrier_in_half_of_a_block": (
        "if (threadIdx.x < 32) __syncthreads(); else __shfl_sync(~0u, 0, 0);"
        " __shfl_sync(~0u, 0, 0); if (threadIdx.x >= 32) return;",
        "wrong",
    ),
    "divergent_barrier": (
        "if (threadIdx.x % 2) __shfl_sync(~0u, 0, 0); else __syncthreads();",
        "waits for threads that never come",
    ),
    "shuffle_after_an_early_return": (
        "__syncthreads(); if (threadIdx.x == 5) return; __syncthreads();"
        " __shfl_xor_sync(~0u, threadIdx.x, 1);",
        "names a lane that has returned",
    ),
    "shuffle_of_part_of_a_warp": ("__shfl_sync(0xffu, 0, 0);", "must name the whole warp"),
}


@pytest.mark.parametrize(("statement", "told"), STATEMENTS.values(), ids=STATEMENTS)
def test_execution_on_the_cpu_tells(statement: str, told: str, tmp_path: Path) -> None:
    source = tmp_path / "kernel.cpp"
    source.write_text(PROGRAM % statement)
    program = tmp_path / "kernel"
    compiled = subprocess.run(
        ["g++", "-std=c++17", f"-I{CSRC}", str(source), "-o", str(program)],
        capture_output=True,
        text=True,
    )
    assert compiled.returncode == 0, compiled.stderr
    done = subprocess.run([program], capture_output=True, text=True, timeout=60)
    assert told in done.stdout
