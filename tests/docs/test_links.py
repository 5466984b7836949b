# SPDX-License-Identifier: GPL-2.0-only
"""The documents: links and anchors lead somewhere, named files exist, pictures parse."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(
    path
    for folder in (ROOT, ROOT / "docs", ROOT / ".github")
    for path in (folder.glob("*.md") if folder == ROOT else folder.rglob("*.md"))
)
PICTURES = sorted((ROOT / "docs").rglob("*.svg"))
ARCHITECTURE = ROOT / "docs" / "architecture"

# A picture, perhaps within a link's text, or a link.
_LINK = re.compile(r"!?\[(?:[^\[\]]|!\[[^\]]*\]\([^)]*\))*\]\(([^()\s]+)\)")
_HEADING = re.compile(r"^#{1,6} +(.*?)(?: +#+)?$")
_FENCE = re.compile(r"^ {0,3}(```|~~~)")
# A path from the top of the repository; <system> and the like stand for several.
_PATH = re.compile(r"`((?:bpf|docs|scripts|tests|zfw_py)/[\w./-]*)`")
# A test function, without its file.
_TEST = re.compile(r"`(test_\w+)`")
_ANY_SYSTEM = ("docker_dns", "firewall", "guard", "steer")
_SYSTEM_PATH = re.compile(r"`((?:bpf|docs|tests|zfw_py)/[\w./-]*<system>[\w./-]*)`")

needs_each = pytest.mark.parametrize(
    "document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix()
)


def prose_of(document: Path) -> list[str]:
    """The lines outside of code blocks."""
    lines = []
    is_code = False
    for line in document.read_text().splitlines():
        if _FENCE.match(line):
            is_code = not is_code
        elif not is_code:
            lines.append(line)
    return lines


def anchors_of(document: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a document."""
    found: set[str] = set()
    for line in prose_of(document):
        heading = _HEADING.match(line)
        if heading is None:
            continue
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1])
        slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        number = 0
        anchor = slug
        while anchor in found:
            number += 1
            anchor = f"{slug}-{number}"
        found.add(anchor)
    return found


@needs_each
def test_relative_links_and_their_anchors_resolve(document: Path) -> None:
    broken = []
    for target in _LINK.findall("\n".join(prose_of(document))):
        if re.match(r"[a-z][a-z0-9+.-]*:", target):
            continue
        name, _, anchor = unquote(target).partition("#")
        path = document.parent / name if name else document
        has_anchor = not anchor or (path.suffix == ".md" and path.is_file())
        if not path.exists() or not has_anchor or (anchor and anchor not in anchors_of(path)):
            broken.append(target)
    assert broken == []


@needs_each
def test_files_that_a_document_names_exist(document: Path) -> None:
    if document.name == "CHANGELOG.md":
        pytest.skip("names files as they were")
    text = "\n".join(prose_of(document))
    named = _PATH.findall(text)
    if document.is_relative_to(ARCHITECTURE):
        named += [
            name.replace("<system>", system)
            for name in _SYSTEM_PATH.findall(text)
            for system in _ANY_SYSTEM
        ]
    assert [name for name in named if not (ROOT / name).exists()] == []


@needs_each
def test_tests_that_a_document_names_exist(document: Path) -> None:
    named = _TEST.findall("\n".join(prose_of(document)))
    if not named:
        return
    sources = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    defined = set(re.findall(r"^ *def (test_\w+)\(", sources, re.MULTILINE))
    assert sorted(set(named) - defined) == []


@pytest.mark.parametrize("page", sorted(ARCHITECTURE.glob("*.md")), ids=lambda path: path.stem)
def test_each_page_of_the_architecture_is_linked_from_its_overview(page: Path) -> None:
    overview = ARCHITECTURE / "README.md"
    if page != overview:
        assert page.name in [
            target.partition("#")[0] for target in _LINK.findall(overview.read_text())
        ]


@pytest.mark.parametrize("picture", PICTURES, ids=lambda path: path.name)
def test_a_picture_parses_and_has_a_size(picture: Path) -> None:
    root = ElementTree.parse(picture).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.get("viewBox")


def test_anchors_are_those_of_github(tmp_path: Path) -> None:
    document = tmp_path / "page.md"
    document.write_text(
        "# One `rule`, step by step\n## Limits\n```\n# no heading\n```\n"
        "## Limits\n## a_b c-d: (e)\n"
    )
    assert anchors_of(document) == {
        "one-rule-step-by-step",
        "limits",
        "limits-1",
        "a_b-c-d-e",
    }
