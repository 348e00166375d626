# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""What ``import vitadapter_fast`` costs, and what an integration says where its framework lacks."""

import subprocess
import sys

import pytest

FRAMEWORKS = (
    "detectron2", "huggingface_hub", "matplotlib", "mmcv", "mmdet", "mmengine", "mmseg", "onnx",
    "peft", "rich", "segmentation_models_pytorch", "timm", "torchvision", "transformers", "triton",
)  # fmt: skip
LIMIT_S = 0.3


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_loads_no_framework() -> None:
    code = f"""
import sys
import torch
before = set(sys.modules)
import vitadapter_fast
print(*sorted(name for name in {FRAMEWORKS} if name in set(sys.modules) - before))
"""
    assert run(code).split() == []


@pytest.mark.thorough
def test_import_is_quick_beyond_torch() -> None:
    code = """
import time
import torch
start = time.perf_counter()
import vitadapter_fast
print(time.perf_counter() - start)
"""
    # The least of several: another process may hold the machine for a while.
    assert min(float(run(code)) for _ in range(3)) < LIMIT_S


# An integration, and what it imports that may be missing.
WITHOUT = [
    ("mmdet", "mmengine"),
    ("detectron2", "detectron2"),
    ("torchvision", "torchvision"),
    ("transformers", "huggingface_hub"),
    ("huggingface_hub", "huggingface_hub"),
    ("timm", "timm"),
    ("smp", "segmentation_models_pytorch"),
]


def test_integrations_without_their_framework_say_what_to_install() -> None:
    """In one process: importing torch takes longest."""
    code = f"""
import sys
from importlib import import_module
for module, framework in {WITHOUT}:
    sys.modules[framework] = None
    try:
        import_module(f"vitadapter_fast.integrations.{{module}}")
    except ImportError as error:
        print(error)
"""
    told = run(code).splitlines()
    assert len(told) == len(WITHOUT)
    for line, (module, framework) in zip(told, WITHOUT, strict=True):
        assert line.startswith(f"vitadapter_fast.integrations.{module} needs {framework}")
        assert "pip install" in line


def test_modules_that_the_readme_names_have_what_it_says() -> None:
    from vitadapter_fast import checkpoint, checks, costs, info, weights

    assert checkpoint.load_checkpoint is weights.load_checkpoint
    assert set(checkpoint.__all__) == set(weights.__all__)
    assert info.cost is costs.cost and info.probes is checks.probes
