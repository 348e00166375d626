# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Which object something is says what it holds only as long as nobody writes to it or frees it."""

import ast
from pathlib import Path

import vitadapter_fast

# What identifies an object or its memory, and why it cannot go stale.
IDENTITY = {
    "costs/cost.py": {"_cdata", "id"},  # within one call, of what it keeps alive during it
    # Of tensors on a device, as the module says: see integrations/test_level_sizes.py.
    "integrations/deformable_detr.py": {"WeakTensorKeyDictionary", "_version", "data_ptr"},
    "weights/choice.py": {"id"},  # within one call, of what a file's dict holds
    "model/quantize.py": {"id"},  # within one call, of layers that the model holds
    "native/captured.py": {"data_ptr"},  # of weights, asked at every call
    "ops/_backends.py": {"data_ptr"},  # its alignment, asked at every call
    "native/extension.py": {"data_ptr"},  # handed to a kernel that runs before the call returns
    "ops/ms_deform_attn/cuda.py": {"data_ptr"},  # its alignment, asked at every call
}


def told_of_identity(node: ast.AST) -> str | None:
    """What of a syntax node is about identity, if anything."""
    name = getattr(node, "attr", getattr(node, "id", ""))
    if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "id":
        return "id"
    if isinstance(node, ast.Attribute) and name in ("_cdata", "_version", "data_ptr"):
        return name
    return name if name.startswith(("Weak", "weakref")) else None


def test_nothing_else_is_kept_by_identity() -> None:
    root = Path(vitadapter_fast.__file__).parent
    found: dict[str, set[str]] = {}
    for path in root.rglob("*.py"):
        told = {told_of_identity(node) for node in ast.walk(ast.parse(path.read_text("utf-8")))}
        if told - {None}:
            found[path.relative_to(root).as_posix()] = {name for name in told if name}
    assert found == IDENTITY
