# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Random and absurd calls of all compiled kernels under GCC's sanitizers; see ``make sanitize``."""

import hashlib
import os
import platform
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from exclusive import exclusive
from sanitized import run_sanitized

ROOT = Path(__file__).resolve().parents[2]
DRIVER = ROOT / "tests" / "sanitizers" / "threads.cpp"
FLAGS = ["-std=c++17", "-O1", "-g", "-fsanitize=thread", "-pthread", "-DVITADAPTER_ISA=portable"]
# For one instruction set alone; the driver calls these where the processor has it.
HALVES = ("avx512fp16", ["-mavx512bw", "-mavx512vl", "-mavx512bf16", "-mavx512fp16"])
OF_ONE_SET = {
    ROOT / "csrc" / source: [
        *("-UVITADAPTER_ISA", f"-DVITADAPTER_ISA={name}", "-mfma", "-mf16c", "-mavx512f"),
        *options,
    ]
    for source, (name, options) in {
        "int8_linear/forward_cpu.cpp": ("avx512vnni", ["-mavx512vnni"]),
        "half_linear/forward_cpu.cpp": HALVES,
        "half_conv/forward_cpu.cpp": HALVES,
        "half_conv/weight_gradient_cpu.cpp": HALVES,
        "window_attention/forward_half_cpu.cpp": HALVES,
        "window_attention/backward_half_cpu.cpp": HALVES,
    }.items()
}

is_sanitized = pytest.mark.skipif(
    "VITADAPTER_TEST_CUDA_FLAGS" in os.environ, reason="already sanitized"
)


@is_sanitized
def test_random_calls_are_clean_under_address_and_undefined_behavior_sanitizers() -> None:
    run_sanitized(
        ["test_random_cases", "test_hostile_calls", "test_bindings", "test_kept_memory"],
        "not triton and not reference",
        VITADAPTER_FUZZ=os.environ.get("VITADAPTER_FUZZ", "0.03"),
    )


def build_driver() -> Path:
    """Compile the driver and the CPU kernels, for every processor, with ThreadSanitizer."""
    csrc = ROOT / "csrc"
    common = sorted((csrc / "common").glob("*.cpp"))
    kernels = sorted(csrc.glob("*/*_cpu.cpp"))
    if platform.machine() != "x86_64":
        kernels = [kernel for kernel in kernels if kernel not in OF_ONE_SET]
    sources = [DRIVER, *common, *kernels]
    digest = hashlib.sha256(" ".join((*FLAGS, *map(str, OF_ONE_SET.items()))).encode())
    for path in (*sources, *sorted(csrc.rglob("*.h"))):
        digest.update(path.read_bytes())
    folder = ROOT / "build" / f"thread_sanitizer-{digest.hexdigest()[:16]}"

    def compiled(source: Path) -> Path:
        output = folder / f"{source.parent.name}_{source.stem}.o"
        command = [
            "g++",
            *FLAGS,
            *OF_ONE_SET.get(source, []),
            f"-I{csrc}",
            "-c",
            source,
            "-o",
            output,
        ]
        subprocess.run(command, check=True, capture_output=True)
        return output

    with exclusive(folder):
        if not (folder / "driver").exists():
            with ThreadPoolExecutor(2) as pool:
                objects = list(pool.map(compiled, sources))
            command = ["g++", *FLAGS, *objects, "-ldl", "-o", folder / "driver"]
            subprocess.run(command, check=True, capture_output=True)
    return folder / "driver"


@is_sanitized
def test_cpu_kernels_are_clean_under_thread_sanitizer_and_a_planted_race_is_told() -> None:
    runtime = subprocess.check_output(["gcc", "-print-file-name=libtsan.so"], text=True).strip()
    if not Path(runtime).is_absolute():
        pytest.skip("gcc has no ThreadSanitizer runtime here")
    driver = build_driver()
    clean = subprocess.run([driver], capture_output=True, text=True)
    assert (clean.returncode, clean.stdout, clean.stderr) == (0, "clean\n", "")
    raced = subprocess.run([driver, "race"], capture_output=True, text=True)
    assert raced.returncode != 0 and "ThreadSanitizer: data race" in raced.stderr
