# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Fuzz the functions of the extension: arguments from libFuzzer, which keeps what reaches new code.

It sees the code of the harness and of pybind's errors, not that of the kernels: those run with the
same arguments under sanitizers in ``make sanitize``.
"""

import sys
from pathlib import Path

import atheris

sys.path[:0] = [str(Path(__file__).parents[1] / name) for name in ("helpers", "ops")]
with atheris.instrument_imports(include=["test_bindings", "examples"]):
    import test_bindings

test = test_bindings.test_absurd_arguments_are_refused_or_harmless
atheris.Setup(sys.argv, test.hypothesis.fuzz_one_input)  # type: ignore[attr-defined]
atheris.Fuzz()
