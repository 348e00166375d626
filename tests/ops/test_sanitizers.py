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
FLAGS = ["-std=c++17", "-O1", "-g", "-fsanitize=thread", "-pthread"]
# For some instruction sets alone; the driver calls these where the processor has them.
WIDE = ["-mfma", "-mf16c", "-mavx512f"]
BFLOATS = ("avx512bf16", [*WIDE, "-mavx512bw", "-mavx512vl", "-mavx512bf16"])
HALVES = ("avx512fp16", [*BFLOATS[1], "-mavx512fp16"])
OF_SOME_SETS = {
    "int8_linear/forward_cpu.cpp": [("avx512vnni", [*WIDE, "-mavx512vnni"])],
    "half_linear/forward_cpu.cpp": [HALVES],
    "half_conv/forward_cpu.cpp": [HALVES],
    "half_conv/weight_gradient_cpu.cpp": [HALVES],
    "window_attention/forward_half_cpu.cpp": [BFLOATS, HALVES],
    "window_attention/backward_half_cpu.cpp": [BFLOATS, HALVES],
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
    sources = [DRIVER, *sorted((csrc / "common").glob("*.cpp")), *sorted(csrc.glob("*/*_cpu.cpp"))]
    digest = hashlib.sha256(repr((FLAGS, OF_SOME_SETS)).encode())
    for path in (*sources, *sorted(csrc.rglob("*.h"))):
        digest.update(path.read_bytes())
    folder = ROOT / "build" / f"thread_sanitizer-{digest.hexdigest()[:16]}"
    jobs: list[tuple[Path, str, list[str]]] = []
    for source in sources:
        sets = OF_SOME_SETS.get(f"{source.parent.name}/{source.name}", [("portable", [])])
        if sets[0][0] == "portable" or platform.machine() == "x86_64":
            jobs += [(source, *one) for one in sets]

    def compiled(job: tuple[Path, str, list[str]]) -> Path:
        source, isa, options = job
        output = folder / f"{source.parent.name}_{source.stem}_{isa}.o"
        options = [*FLAGS, f"-DVITADAPTER_ISA={isa}", *options, f"-I{csrc}"]
        subprocess.run(
            ["g++", *options, "-c", source, "-o", output], check=True, capture_output=True
        )
        return output

    with exclusive(folder):
        if not (folder / "driver").exists():
            with ThreadPoolExecutor(2) as pool:
                objects = list(pool.map(compiled, jobs))
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
