# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The code blocks of README, CONTRIBUTING and docs, and how tests run them."""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS]

# Stands in for a program: notes its arguments. Python runs this library, and nothing else.
_PROGRAM = f"""#!{sys.executable}
import json, os, sys
from pathlib import Path
name, *arguments = Path(sys.argv[0]).name, *sys.argv[1:]
if name == "python" and arguments[0] in {{"-m", "-c", "convert_14to16.py"}}:
    os.execv(sys.executable, [sys.executable, *arguments])
with open(os.environ["NOTES"], "a") as notes:
    notes.write(json.dumps([name, *arguments]) + "\\n")
"""


class Block(NamedTuple):
    """A block of a page: its language and text."""

    language: str
    text: str
    page: str


def _blocks() -> Iterator[tuple[str, Block]]:
    taken: dict[str, int] = {}
    for page in PAGES:
        # A block, or a heading of the first two levels outside of blocks.
        parts = re.finditer(
            r"^```(\w*)\n(.*?)^```$|^##? ([^\n]+)$",
            page.read_text(),
            re.DOTALL | re.MULTILINE,
        )
        for part in parts:
            if part[3]:
                section = part[3]
            elif part[1]:
                name = f"{section}: {part[1]}"
                taken[name] = taken.get(name, 0) + 1
                number = f" {taken[name]}" if taken[name] > 1 else ""
                yield name + number, Block(part[1], part[2], page.name)


# "SECTION: LANGUAGE", a number after it from the second on -> block.
BLOCKS = dict(_blocks())


def runs(name: str) -> pytest.MarkDecorator:
    """Give a test the block that it runs; each block has one such test."""
    return pytest.mark.parametrize("block", [pytest.param(BLOCKS[name], id=name)])


def run_python(block: Block, **prelude: Any) -> dict[str, Any]:
    """Run a block, with names that its reader has; return the names after it.

    What it prints must be what the comments below its print() say.
    """
    names = dict(prelude)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(block.text, block.page, "exec"), names)
    told = re.findall(r"^print\(.*\n# (.*)$", block.text, re.MULTILINE)
    assert printed.getvalue().splitlines() == told
    return names


def run_shell(block: Block, folder: Path, programs: Sequence[str] = ()) -> list[list[str]]:
    """Run a block in a folder with this library; return the calls of the programs stood in for.

    Args:
        block: Of language sh.
        folder: The current directory, which gets a folder ``bin`` with the stand-ins.
        programs: What is not run but noted; a path, if it has a slash, is made in the folder.
    """
    for program in ("python", *programs):
        path = folder / program if "/" in program else folder / "bin" / program
        path.parent.mkdir(exist_ok=True)
        path.write_text(_PROGRAM)
        path.chmod(0o755)
    for name in ("constraints.txt", "convert_14to16.py"):
        (folder / name).symlink_to(ROOT / name)
    notes = folder / "bin" / "notes"
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "NOTES": str(notes), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["sh", "-ec", block.text], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []
