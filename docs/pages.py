# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A hook of .mkdocs.yml: the repository's pages in; the pages of the site, with its API, out."""

import ast
import logging
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
API = "docs/api/"
# What there is of pages outside of docs/, and what pages link to.
OTHERS = ("*.md", "CITATION.cff", "benchmarks/results/*")

_log = logging.getLogger("mkdocs.hooks.pages")


def pages_of(nav: list[Any]) -> Iterator[str]:
    """Yield the paths of a navigation, from all its levels."""
    for entry in nav:
        below = next(iter(entry.values())) if isinstance(entry, dict) else entry
        yield from (pages_of(below) if isinstance(below, list) else [below])


def body_of(module: str) -> tuple[list[ast.stmt], str]:
    """Return what stands at the top of a module, and the package that its imports start from."""
    path = ROOT / module.replace(".", "/")
    if path.is_dir():
        return ast.parse((path / "__init__.py").read_text()).body, module
    return ast.parse(path.with_suffix(".py").read_text()).body, module.rpartition(".")[0]


def definitions(body: list[ast.stmt]) -> dict[str, ast.stmt]:
    """Return the functions, classes and constants of a module by name."""
    found: dict[str, ast.stmt] = {}
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            found[ast.unparse(target)] = node
    return found


def public_names(module: str) -> list[str]:
    """Return ``__all__``, or what a module defines without a _ in front."""
    found = definitions(body_of(module)[0])
    if isinstance(listed := found.get("__all__"), ast.Assign):
        return list(ast.literal_eval(listed.value))
    return [name for name in found if name.isidentifier() and not name.startswith("_")]


def origin(module: str, name: str) -> tuple[str, ast.stmt]:
    """Return the module that defines what ``module`` has by a name, and the definition."""
    body, package = body_of(module)
    for node in body:
        if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names):
            return origin(resolve_name("." * node.level + str(node.module), package), name)
    return module, definitions(body)[name]


def api_page(module: str) -> str:
    """Return the text of a module's page.

    mkdocstrings leaves two things out unless they are named: constants, which have no docstring,
    and a function that has the name of its module, for which it takes the module.
    """
    text = f"# {module}\n\n::: {module}\n"
    for name in public_names(module):
        home, node = origin(module, name)
        is_constant = isinstance(node, ast.Assign | ast.AnnAssign)
        if is_constant or (home != module and home.endswith(f".{name}")):
            # Of several pages that have it, links lead to that of its own package.
            is_another = str(module not in (home, home.rpartition(".")[0])).lower()
            text += (
                f"\n::: {home}.{name}\n    options: {{show_root_heading: true, "
                f"show_root_toc_entry: true, skip_local_inventory: {is_another}}}\n"
            )
    return text


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Give every file the path that it has in the repository; add the API's pages."""
    written = [path for pattern in OTHERS for path in sorted(ROOT.glob(pattern))]
    for file in [each for each in files if each.src_dir == config.docs_dir]:
        files.remove(file)
        if Path(file.src_uri).suffix in (".md", ".png", ".ipynb"):
            written.append(ROOT / "docs" / file.src_uri)
    for path in written:
        name = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(path)))
    for name in pages_of(config.nav or []):
        if name.startswith(API):
            content = api_page(name.removeprefix(API).removesuffix(".md"))
            files.append(File.generated(config, name, content=content))
    for file in files:
        # The address of a page is without the folder.
        file.dest_uri = file.dest_uri.removeprefix("docs/")
    return files


def on_page_content(html: str, page: Page, **_: Any) -> None:
    """Warn, which ends a strict build, of a public name that its page lacks."""
    if page.file.src_uri.startswith(API):
        module = page.file.src_uri.removeprefix(API).removesuffix(".md")
        for name in public_names(module):
            if f'.{name}"' not in html:
                _log.warning("%s: %s is not on its page", module, name)
