"""The pages say nothing of files that are not there: links, anchors and names of files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from architecture import FOLDER, ROOMS

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for place in (".", "docs", ".github", "sgl-kernel", "benchmark/traces")
    for path in (ROOT / place).glob("*.md")
)
FOLDERS = ("benchmark", "docs", "python", "requirements", "scripts", "sgl-kernel", "test")
ROOM_NAMES = tuple(name for layer in ROOMS for name in layer)

LINK = re.compile(r"\]\(([^)\s]+)\)")
IN_REPOSITORY = re.compile(rf"(?<![\w./-])(?:{'|'.join(FOLDERS)})/[\w./*-]*[\w*/]")
"""A path from the repository's root, anywhere on a page: in a sentence or in a command."""
IN_PACKAGE = re.compile(rf"`((?:(?:{'|'.join(ROOM_NAMES)})/[\w./*-]*|[a-z_]+\.py))`")
"""A path from the package's folder, in backticks."""


def page_name(path: Path) -> str:
    """The page's path from the repository's root, as the name of its test."""
    return path.relative_to(ROOT).as_posix()


def without_code(text: str) -> str:
    """A page less its fenced blocks, whose first characters may look like headings."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)


def anchors(page: Path) -> set[str]:
    """What GitHub makes of a page's headings: lower case, hyphens for blanks, no punctuation."""
    headings = re.findall(r"^#+ (.*)$", without_code(page.read_text("utf-8")), re.M)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.strip().replace(" ", "-") for heading in plain}


def exists(folder: Path, name: str) -> bool:
    """Whether a path, which may hold a `*`, names something in a folder."""
    return any(folder.glob(name.rstrip("/"))) if "*" in name else (folder / name).exists()


def missing_links(page: Path) -> Iterator[str]:
    """Relative links of a page that lead nowhere."""
    for target in LINK.findall(without_code(page.read_text("utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        other = page.parent / name if name else page
        if not other.exists() or (anchor and anchor not in anchors(other)):
            yield target


def missing_files(page: Path) -> Iterator[str]:
    """Files that a page names and nobody can open."""
    text = page.read_text("utf-8")
    own = page.parent  # a distribution of its own names its files from its own folder
    for name in IN_REPOSITORY.findall(text):
        if not exists(ROOT, name) and not exists(own, name):
            yield name
    for name in IN_PACKAGE.findall(text):
        if not exists(FOLDER, name) and not exists(own, name):
            yield name


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_a_page_links_only_to_what_exists(page: Path) -> None:
    assert list(missing_links(page)) == []


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_a_page_names_only_files_that_exist(page: Path) -> None:
    assert list(missing_files(page)) == []


def test_the_walkthrough_names_files_of_every_room_on_the_way() -> None:
    page = (ROOT / "docs" / "walkthrough.md").read_text("utf-8")
    rooms = {name.partition("/")[0] for name in IN_PACKAGE.findall(page)}

    assert rooms >= {"batch_file", "answering", "run", "server", "store", "runtime", "pool"}
    assert rooms >= {"policy", "plan", "lengths", "cost"}


def test_every_page_of_docs_can_be_reached_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")

    for page in (ROOT / "docs").glob("*.md"):
        assert f"docs/{page.name}" in readme, f"{page.name} is linked from nowhere"
