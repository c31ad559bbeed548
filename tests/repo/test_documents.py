"""What the documents say of the tree is so, and the two readmes are one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kvmkit.cli.verbs import VERBS

from .tree import ROOT, files

ENGLISH, CHINESE = ROOT / "README.md", ROOT / "README.zh-CN.md"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def outline(path: Path) -> list[int]:
    """The levels of the headings, in order."""
    text = FENCE.sub("", path.read_text())
    return [len(marks) for marks in re.findall(r"^(#+) ", text, re.MULTILINE)]


def commands(path: Path) -> list[list[str]]:
    """The code blocks; what follows a # or stands in quotes may be in the reader's language."""
    blocks = [re.sub(r"#.*", "", body) for _, body in FENCE.findall(path.read_text())]
    return [[line.rstrip() for line in body.splitlines() if line.strip()] for body in blocks]


def test_the_readmes_have_the_same_sections() -> None:
    assert outline(ENGLISH) == outline(CHINESE)


def test_the_readmes_have_the_same_commands() -> None:
    assert commands(ENGLISH) == commands(CHINESE)


def test_the_readmes_have_as_many_items() -> None:
    def items(path: Path) -> list[str]:
        return [line[:2] for line in path.read_text().splitlines() if re.match(r"(- |\| |\d\. )", line)]

    assert items(ENGLISH) == items(CHINESE)


@pytest.mark.parametrize("path", [path for path in files() if path.suffix == ".md"], ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text())
    assert [target for target in targets if not (path.parent / target).exists()] == []


def test_verbs_in_the_readme_exist() -> None:
    used = set(
        re.findall(
            r"^(?:sudo )?\./kvmkit ([a-z]+)", "\n".join(body for _, body in FENCE.findall(ENGLISH.read_text())), re.M
        )
    )
    assert used
    assert used <= VERBS.keys()


def test_every_document_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    pages = {path.name for path in files() if path.parent == ROOT / "docs"} - {"README.md"}
    assert [name for name in sorted(pages) if f"({name})" not in index] == []
