# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Name of a packaged training config in, its path out; and the command that lists them."""

import argparse
import ast
import difflib
import sys
from pathlib import Path

_FOLDER = Path(__file__).parents[1] / "integrations" / "configs"


def config_names() -> list[str]:
    """Return the names of the packaged configs, sorted; a ``/`` separates folder and file."""
    paths = (path.relative_to(_FOLDER) for path in _FOLDER.rglob("*.py"))
    # A leading underscore marks what others build on.
    return sorted(
        path.with_suffix("").as_posix()
        for path in paths
        if not any(part.startswith("_") for part in path.parts)
    )


def config_path(name: str) -> Path:
    """Return the file of a packaged config, for ``Config.fromfile`` or ``LazyConfig.load``.

    Args:
        name: As ``config_names`` gives it; ``.py`` may follow.

    Raises:
        ValueError: There is none of this name.
    """
    names = config_names()
    wanted = name.removesuffix(".py")
    if wanted not in names:
        near = difflib.get_close_matches(wanted, names, n=3, cutoff=0.4)
        hint = f"; nearest are {', '.join(near)}" if near else ""
        raise ValueError(
            f"configs: no packaged config is named {name!r}{hint}; "
            "`python -m vitadapter_fast configs` lists all"
        )
    return _FOLDER / f"{wanted}.py"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to a parser."""
    parser.add_argument(
        "name", nargs="?", metavar="NAME", help="config whose path to print; none lists all"
    )


def run(args: argparse.Namespace) -> int:
    """List the configs, or print the path of one, and return the exit status."""
    if args.name is None:
        for name in config_names():
            sys.stdout.write(f"{name}\n    {_summary(config_path(name))}\n")
        return 0
    try:
        path = config_path(args.name)
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(f"{path}\n")
    return 0


def _summary(path: Path) -> str:
    """First line of the docstring: reading runs nothing and needs no framework."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0]
