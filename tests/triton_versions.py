# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Compile every Triton kernel with several versions of Triton, without a GPU.

    python tests/triton_versions.py [VERSION ...]    default: the oldest, one between, the installed

Each version is installed once, to build/triton-VERSION. What S launches in training is compiled for
sm_90 by Triton's own launch path, and calls that pass more sizes. Exits 1 if a kernel does not.
"""

import os
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VERSIONS = ["3.1.0", "3.3.1", metadata.version("triton")]


def path_of(version: str) -> list[str]:
    """Return where the version lies, installed if it is not; nothing for that of this Python."""
    if version == metadata.version("triton"):
        return []
    folder = ROOT / "build" / f"triton-{version}"
    if not folder.exists():
        part = folder.with_suffix(".part")
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(part)]
        subprocess.run([*pip, f"triton=={version}"], check=True)
        part.rename(folder)
    return [str(folder)]


def main() -> int:
    """Compile with every version; print a line for each and what failed."""
    failed = 0
    for version in sys.argv[1:] or VERSIONS:
        path = os.pathsep.join([*path_of(version), str(ROOT)])
        environment = os.environ | {"PYTHONPATH": path, "TRITON_INTERPRET": "0"}
        start = time.monotonic()
        script = ROOT / "tests" / "ops" / "compile_all.py"
        done = subprocess.run(
            [sys.executable, str(script)], env=environment, stdout=subprocess.PIPE, text=True
        )
        failed += done.returncode != 0
        lines = done.stdout.strip() or f"ended with {done.returncode} and said nothing"
        print(f"triton {version}, {time.monotonic() - start:.0f} s: {lines}", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
