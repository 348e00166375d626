# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""README and docs: short enough, reachable, without a dead link, and true in their tables."""

import re
import shlex
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch
from snippets import DOCS, PAGES, ROOT

import vitadapter_fast as vf

README = ROOT / "README.md"
LINKING = [*PAGES, ROOT / "SECURITY.md", *(ROOT / "docs").glob("*.ipynb")]
CI = ROOT / ".ci" / "run"
SITE = ROOT / ".mkdocs.yml"
PACKAGE = ROOT / "vitadapter_fast"
# Modules for this package alone, or whose names it gives under those of others.
INNER = {
    "__main__", "builders", "commands", "errors", "files", "fused", "integrations", "model",
    "native", "presets", "settings", "version",
    *(f"integrations.{name}" for name in (
        "_common", "detectron2_lazy", "hub_files", "replacement",
    )),
}  # fmt: skip
CONFIGS = ROOT / "vitadapter_fast" / "integrations" / "configs"
# Convolutions of the pyramid network, and heads for 80 classes: as test_mmdet_detectors.py counts.
DETECTOR_OF_S, BACKBONE_OF_S, FPN_CHANNELS = 48_252_800, 27_954_320, 256


def without_blocks(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def links(page: Path) -> list[str]:
    """The targets of the links and pictures of a page that lie in the repository."""
    targets = re.findall(r"\]\(([^)\s]+)\)", without_blocks(page))
    return [each for each in targets if not re.match(r"[a-z]+:", each)]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", without_blocks(page), re.MULTILINE):
        anchor = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        numbers = (f"{anchor}-{number}" for number in range(1, 100))
        found.add(anchor if anchor not in found else next(n for n in numbers if n not in found))
    return found


def test_readme_has_at_most_120_lines() -> None:
    assert len(README.read_text().splitlines()) <= 120


def test_readme_links_every_page_of_the_docs() -> None:
    linked = {(ROOT / each.partition("#")[0]).resolve() for each in links(README)}
    assert [page.name for page in DOCS if page not in linked] == []
    assert len(DOCS) >= 9


@pytest.mark.parametrize("page", LINKING, ids=lambda page: page.name)
def test_every_link_and_anchor_resolves(page: Path) -> None:
    dead = []
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / unquote(path)).resolve() if path else page
        is_inside = target.is_relative_to(ROOT)
        if not is_inside or not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    assert dead == []


def test_links_are_found_where_they_are(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A `b`: c\n[x](y.md#z) ![p](q.png)\n```sh\n[no](no)\n```\n[w](https://w.org)\n# A\n# A\n"
    )
    assert links(page) == ["y.md#z", "q.png"]
    assert anchors(page) == {"a-b-c", "a", "a-1"}


def entries_of_the_site() -> list[str]:
    navigation = re.search(r"^nav:\n(.*?)\n\n", SITE.read_text(), re.DOTALL | re.MULTILINE)
    assert navigation
    return re.findall(r"^ +- (?:[\w ]+: )?(\S+\.md)$", navigation[1], re.MULTILINE)


def test_every_page_is_on_the_site_once() -> None:
    entries = [name for name in entries_of_the_site() if not name.startswith("docs/api/")]
    pages = [*ROOT.glob("*.md"), *DOCS]
    assert sorted(entries) == sorted(page.relative_to(ROOT).as_posix() for page in pages)
    assert entries[0] == "README.md"


def test_every_public_module_has_its_page_on_the_site_once() -> None:
    entries = re.findall(r"docs/api/(\S+)\.md", "\n".join(entries_of_the_site()))
    found = [*PACKAGE.glob("*.py"), *(PACKAGE / "integrations").glob("*.py")]
    found += [path.parent for path in PACKAGE.glob("*/__init__.py")]
    modules = {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for path in found
        if path.name != "__init__.py"
    }
    assert modules >= INNER
    public = {f"vitadapter_fast.{name}" for name in modules - INNER}
    assert sorted(entries) == sorted({"vitadapter_fast", *public})


def test_site_is_strict_and_its_tools_are_the_extra() -> None:
    assert "mkdocs build --strict -f .mkdocs.yml" in (ROOT / "Makefile").read_text()
    for check in ("omitted_files", "not_found", "anchors", "unrecognized_links"):
        assert f"{check}: warn" in SITE.read_text()
    project = (ROOT / "pyproject.toml").read_text()
    (extra,) = re.findall(r"^docs = \[(.+)\]$", project, re.MULTILINE)
    tools = re.findall(r'"([\w-]+(?:\[\w+\])?)', extra)
    (installed,) = re.findall(r"constraints.txt (mkdocs .+)$", CI.read_text(), re.MULTILINE)
    assert shlex.split(installed) == tools
    pinned = (ROOT / "constraints.txt").read_text()
    assert [name for name in tools if f"\n{name.partition('[')[0]}==" not in pinned] == []


def test_pictures_are_small() -> None:
    pictures = [path for path in (ROOT / "docs").iterdir() if path.suffix == ".png"]
    assert [path.name for path in pictures if path.stat().st_size >= 300_000] == []


def test_first_sentence_has_the_range_of_all_ratios_to_the_original() -> None:
    ratios = []
    column = None
    for line in (ROOT / "docs" / "speed.md").read_text().splitlines():
        cells = line.split("|")
        if len(cells) == 1:
            column = None
        elif column is None:
            names = [cell.strip() for cell in cells]
            column = names.index("original code") if "original code" in names else 0
        elif found := re.search(r"\((.+)x\)", cells[column]):
            ratios.append(float(found[1]))
    assert len(ratios) >= 10
    said = re.search(r"(\S+) to\s(\S+) times as fast", README.read_text())
    assert said and [float(each) for each in said.groups()] == [min(ratios), max(ratios)]


def test_models_of_the_readme_are_those_of_the_package() -> None:
    section = README.read_text().partition("\n## Models\n")[2].partition("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in re.findall(r"^\| [SBLg] .+$", section, re.MULTILINE)
    ]
    assert [row[0] for row in rows] == list("SBLg")
    for size, pretraining, _, parameters, in_detector, _, config in rows:
        with torch.device("meta"):
            model = getattr(vf, f"vit_adapter_{size.lower()}")()
        count = sum(each.numel() for each in model.parameters())
        of_the_rest = DETECTOR_OF_S - BACKBONE_OF_S - 4 * FPN_CHANNELS * 384
        detector = count + of_the_rest + 4 * FPN_CHANNELS * model.embed_dim
        assert (parameters, in_detector) == (f"{count / 1e6:.1f} M", f"{detector / 1e6:.1f} M")
        assert pretraining == f"DINOv2-{size}"
        name = config.strip("`")
        assert (CONFIGS / f"{name}.py").is_file()
        assert (CONFIGS / "detectron2" / f"{name}.py").is_file()
