# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""What the repository says of itself: the metadata of the package."""

import ast
import importlib
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from vitadapter_fast import cli

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parents[1]


def project() -> dict[str, Any]:
    metadata: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return metadata


def test_installed_command_is_the_command_line() -> None:
    module, _, name = project()["scripts"]["vitadapter-fast"].partition(":")
    assert getattr(importlib.import_module(module), name) is cli.main


def test_what_every_import_needs_is_declared() -> None:
    """What modules import at their top, but for those of an extra or a framework."""
    metadata = project()
    declared = {re.split(r"\W", each)[0] for each in metadata["dependencies"]}
    optional = {"PIL", "matplotlib", "rich", "triton"} | {"onnx", "onnxscript", "onnxruntime"}
    optional |= {"detectron2", "mmcv", "mmdet", "mmengine", "mmseg", "pycocotools", "torchvision"}
    imported = set()
    for path in (ROOT / "vitadapter_fast").rglob("*.py"):
        if "configs" in path.parts:
            continue
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add(str(node.module).partition(".")[0])
    assert "typing_extensions" in imported
    own = {"vitadapter_fast", *sys.stdlib_module_names}
    assert imported - own - optional == declared
