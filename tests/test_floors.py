# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Imports go down only, from floor to floor of the package, and never in a circle."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import vitadapter_fast

ROOT = Path(vitadapter_fast.__file__).parent
# From the ground up: what lies in the package's folder, without .py.
FLOORS = (
    {"_C", "errors", "files", "images", "presets", "settings", "version"},
    {"native"},
    {"ops"},
    {"fused"},
    {"model"},
    {"builders", "checks", "costs", "optim", "weights"},
    {"export"},
    {"integrations"},
    # On all else: they are how people use it, torchvision's detectors in training as well.
    {"commands"},
    {"__init__", "__main__", "checkpoint", "info"},
)
# Where a model is built with pretrained=, and not before.
UPWARD = {("model.vit_adapter", "weights")}


class Import(NamedTuple):
    """A module that another one imports; names are dotted, without the package's."""

    importer: str
    imported: str
    is_late: bool  # in a function, or for types alone


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in ROOT.rglob("*.py") if "configs" not in path.parts}


def targets_of(node: ast.Import | ast.ImportFrom, importer: str) -> Iterator[str]:
    """Modules of this package that a statement names; others it has no name for."""
    if isinstance(node, ast.Import):
        bases, names = [alias.name for alias in node.names], []
    else:
        own = ["vitadapter_fast", *(importer.split(".") if importer != "__init__" else ())]
        # The first dot is a package itself, and of a module what it lies in.
        steps = node.level - (MODULES[importer].name == "__init__.py")
        start = own[: len(own) - steps] if node.level else []
        bases = [".".join([*start, *filter(None, [node.module])])]
        names = [alias.name for alias in node.names]
    for base in bases:
        if base.split(".")[0] != "vitadapter_fast":
            continue
        inside = base.removeprefix("vitadapter_fast").removeprefix(".")
        found = [".".join(filter(None, [inside, name])) for name in names]
        modules = [each for each in found if each in MODULES or each == "_C"]
        yield from modules
        if len(modules) < len(found) or not names:
            yield inside or "__init__"


def imports_of(importer: str) -> Iterator[Import]:
    def visit(node: ast.AST, is_late: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.Import, ast.ImportFrom)):
                for target in targets_of(child, importer):
                    yield Import(importer, target, is_late)
            is_function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef))
            is_for_types = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            yield from visit(child, is_late or is_function or is_for_types)

    yield from visit(ast.parse(MODULES[importer].read_text("utf-8")), False)


IMPORTS = [each for name in MODULES for each in imports_of(name)]


def floor_of(module: str) -> int:
    entry = module.split(".")[0]
    (floor,) = (index for index, entries in enumerate(FLOORS) if entry in entries)
    return floor


def test_imports_are_found() -> None:
    found = set(IMPORTS)
    assert Import("weights.load", "weights.formats", False) in found
    assert Import("checks.probes", "ops", False) in found
    assert Import("commands.features.command", "commands.options", False) in found
    assert Import("model.vit_adapter", "weights", True) in found
    assert Import("__init__", "errors", False) in found


def test_no_import_goes_up() -> None:
    up = {each for each in IMPORTS if floor_of(each.imported) > floor_of(each.importer)}
    assert {(each.importer, each.imported) for each in up} == UPWARD
    assert all(each.is_late for each in up)


def test_no_module_needs_itself_to_be_imported() -> None:
    needs: dict[str, set[str]] = {name: set() for name in MODULES}
    for each in IMPORTS:
        if not each.is_late:
            needs[each.importer].add(each.imported)
    TopologicalSorter(needs).prepare()  # raises CycleError with the circle
