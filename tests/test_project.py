# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""What the repository says of itself is what it does: metadata, version, hooks, CI."""

import ast
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from snippets import BLOCKS
from thorough import THOROUGH

from vitadapter_fast import __version__

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = ROOT / ".github" / "workflows"


def project() -> dict[str, Any]:
    metadata: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return metadata


def test_installed_command_is_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    module, _, name = project()["scripts"]["vitadapter-fast"].partition(":")
    with pytest.raises(SystemExit) as stop:
        getattr(importlib.import_module(module), name)(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"vitadapter_fast {__version__}\n"


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


def test_version_is_the_same_everywhere() -> None:
    assert project()["dynamic"] == ["version"]
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()
    changes = (ROOT / "CHANGELOG.md").read_text()
    # The newest release, or what is to be the first.
    releases = re.findall(r"^## \[(\d.*?)\]", changes, re.MULTILINE)
    assert __version__ in (releases[:1] or re.findall(r"version.py`, (\S+) now", changes))
    assert changes.index("## [Unreleased]") < (changes + "## [0").index("## [0")


def texts_of(key: str, path: str) -> list[str]:
    """The values of a key of a YAML file, of any depth, each on one line."""
    values = re.findall(rf"^[ -]*{key}: (.+)$", (ROOT / path).read_text(), re.MULTILINE)
    return [value.strip("\"'") for value in values]


def test_hooks_are_the_checks_of_make_lint() -> None:
    config = ".pre-commit-config.yaml"
    assert texts_of("entry", config) == ["make lint"]
    assert texts_of("language", config) == ["system"]  # the tools that make finds, of one version
    assert texts_of("pass_filenames", config) == ["false"]
    assert re.search(r"^lint:\n\truff check", (ROOT / "Makefile").read_text(), re.MULTILINE)
    (pattern,) = texts_of("files", config)
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    read_by_lint = (".py", ".pyi", ".ipynb", ".cpp", ".h", ".cu", ".cuh")
    read = [name for name in tracked if name.endswith(read_by_lint)]
    assert [name for name in (*read, "pyproject.toml") if not re.search(pattern, name)] == []


def test_workflow_runs_the_parts_of_ci_and_nothing_else() -> None:
    workflow = ".github/workflows/ci.yml"
    assert texts_of("run", workflow) == [".ci/run ${{ matrix.part }}"]
    script = (ROOT / ".ci" / "run").read_text()
    parts = re.findall(r"^part_(\w+)\(\)", script, re.MULTILINE)
    # On machines of their own both groups of long tests run, apart.
    assert texts_of("part", workflow) == [
        f"[{', '.join(part for part in parts if part != 'rest')}]"
    ]
    assert texts_of("python-version", workflow) == ["3.11"]


@pytest.mark.parametrize("workflow", sorted(path.name for path in WORKFLOWS.iterdir()))
def test_workflow_pins_actions_and_may_write_nothing_by_default(workflow: str) -> None:
    path = f".github/workflows/{workflow}"
    actions = texts_of("uses", path)
    assert actions
    for action in actions:
        assert re.fullmatch(r"(actions|pypa)/[\w-]+@v\d+\.\d+\.\d+", action)
    text = (ROOT / path).read_text()
    assert re.search(r"^permissions:\n  contents: read\n\n", text, re.MULTILINE)


def test_ci_does_what_the_readme_and_the_makefile_say(tmp_path: Path) -> None:
    """With programs that note what they are called with in place of all that it runs."""
    folder, programs, notes = tmp_path / "clone", tmp_path / "bin", tmp_path / "notes"
    (folder / ".ci").mkdir(parents=True)
    programs.mkdir()
    for name in (".ci/run", "README.md"):
        shutil.copy(ROOT / name, folder / name)
    note = f'#!/bin/sh\necho "$(basename "$0") $*" >> {notes}\n'
    # A virtual environment is a copy of these, so that what CI installs is found in there alone.
    make = f'{note}[ "$2" != venv ] || {{ mkdir -p "$3" && cp -r {programs} "$3/bin"; }}\n'
    for name in ("pip", "pytest", "make", "python", "python3"):
        (programs / name).write_text(make if name == "python3" else note)
        (programs / name).chmod(0o755)
    (folder / ".ci" / "integrations").write_text(note)
    (folder / ".ci" / "integrations").chmod(0o755)
    environment = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    command = BLOCKS["Start: sh 2"].text
    install, tests = (" ".join(shlex.split(each)) for each in command.strip().split(" && "))
    wanted = {
        "test": [install, tests],
        "rest": [install, "make test-rest GROUP="],
        "kernels": [install, "make test-rest GROUP=kernels"],
        "others": [install, "make test-rest GROUP=others"],
        "lint": [install, "pip install -q -c constraints.txt ruff mypy clang-format", "make lint"],
        "docs": [
            "pip install -q -c constraints.txt mkdocs mkdocs-material mkdocstrings[python]",
            "make docs",
        ],
        "speed": [install, "python benchmarks/gate.py"],
        "frameworks": ["integrations "],
    }
    for part, calls in wanted.items():
        notes.write_text("")
        subprocess.run([folder / ".ci" / "run", part], env=environment, check=True)
        assert [line for line in notes.read_text().splitlines() if " -m venv " not in line] == calls
    notes.write_text("")
    subprocess.run([folder / ".ci" / "run"], env=environment, check=True)
    called = [line for line in notes.read_text().splitlines() if " -m venv " not in line]
    tools = [*wanted["lint"][1:], *wanted["docs"], *wanted["speed"][1:], "integrations "]
    assert called == [*wanted["test"], *wanted["others"][1:], *tools]  # without commits
    refused = subprocess.run([folder / ".ci" / "run", "x"], env=environment, capture_output=True)
    assert refused.returncode == 2


def test_long_tests_are_files_that_exist() -> None:
    tests = ROOT / "tests"
    for files in THOROUGH.values():
        for folder, names in files.items():
            assert all((tests / folder / f"test_{name}.py").is_file() for name in names), folder
