# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Run tests of this folder on an extension that GCC's address and undefined sanitizers see."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

FLAGS = (
    "-O1 -fsanitize=address,undefined -fno-sanitize-recover=all"
    " -DVITADAPTER_HEAD_CHANNELS=32 -DVITADAPTER_LEVELS=1,3"
)


def run_sanitized(modules: Sequence[str], chosen: str, **environment: str) -> str:
    """Run the tests of some modules that the expression chooses; return what pytest says."""
    # The C++ runtime too, or AddressSanitizer knows no exceptions: torch loads it after.
    runtimes = [
        subprocess.check_output(["gcc", f"-print-file-name={name}"], text=True).strip()
        for name in ("libasan.so", "libstdc++.so")
    ]
    if not all(Path(runtime).is_absolute() for runtime in runtimes):
        pytest.skip("gcc has no AddressSanitizer runtime here")
    environment = {
        "VITADAPTER_TEST_CUDA_FLAGS": FLAGS,
        "LD_PRELOAD": " ".join(runtimes),
        # Python and torch keep what they allocate; the stacks of fibers are not those of threads.
        # What no memory holds is refused as without a sanitizer.
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0"
        ":allocator_may_return_null=1",
        **environment,
    }
    folder = Path(__file__).parent
    files = [str(folder / f"{module}.py") for module in modules]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files]
    done = subprocess.run(
        [*command, "-k", chosen],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        cwd=folder,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    assert " passed" in done.stdout
    return done.stdout
