# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The files with CUDA kernels, as csrc/CMakeLists.txt lists them."""

import re
from pathlib import Path

CSRC = Path(__file__).resolve().parents[2] / "csrc"
KERNEL_FILES = re.findall(r"\w+/\w+_cuda\.cu", (CSRC / "CMakeLists.txt").read_text())
