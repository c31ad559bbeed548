"""Imports point downwards only.

A package may import what is in its own row and in the rows below. Three stand alone: they import only the bottom row,
and are imported only from above the machine's parts.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from .tree import ROOT, sources

ROWS = """
    __main__
    cli api web bench
    manager testing
    machine
    snapshot boot
    virtio pci devices
    vhost_user block net display
    accel
    bus memory
    terminal paths errors packages firmware
"""
BOTTOM = {"terminal", "paths", "errors", "packages", "firmware"}
STAND_ALONE = {"host", "guest", "secureboot"}
MAY_USE_STAND_ALONE = {"__main__", "cli", "api", "web", "bench", "manager", "testing", "machine"}

LEVEL = {name: number for number, row in enumerate(ROWS.split("\n")) for name in row.split()}
PACKAGE = ROOT / "src" / "kvmkit"
CIMPORT = re.compile(r"^\s*(?:from|cimport|import)\s+(kvmkit(?:\.\w+)+)", re.MULTILINE)


def modules() -> list[Path]:
    return [path for path in sources(".py", ".pyi", ".pxd") if path.parent != PACKAGE or path.stem != "__init__"]


def part_of(path: Path) -> str:
    """`accel` of src/kvmkit/accel/tcg/cpu.py, `errors` of src/kvmkit/errors.py."""
    first = path.relative_to(PACKAGE).parts[0]
    return first if (PACKAGE / first).is_dir() else path.stem


def imported(path: Path) -> Iterator[str]:
    """The parts of kvmkit that a file imports, at its top or later."""
    if path.suffix == ".pxd":
        for name in CIMPORT.findall(path.read_text()):
            yield name.split(".")[1]
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = list(_from(path, node))
        else:
            continue
        for name in names:
            parts = name.removeprefix("cython.cimports.").split(".")
            if parts[0] == "kvmkit" and len(parts) > 1:
                yield parts[1]


def _from(path: Path, node: ast.ImportFrom) -> Iterator[str]:
    base = node.module or ""
    if node.level:
        package = path.relative_to(PACKAGE.parent).parent.parts
        base = ".".join([*package[: len(package) - node.level + 1], *([base] if base else [])])
    for alias in node.names:
        yield f"{base}.{alias.name}"


def allowed(user: str, used: str) -> bool:
    if user == used:
        return True
    if user in STAND_ALONE:
        return used in BOTTOM
    if used in STAND_ALONE:
        return user in MAY_USE_STAND_ALONE
    return LEVEL[used] >= LEVEL[user]


def test_every_part_has_its_place() -> None:
    known = LEVEL.keys() | STAND_ALONE
    assert {part_of(path) for path in modules()} <= known, "give the new part its row in ROWS"


@pytest.mark.parametrize("part", sorted({part_of(path) for path in modules()}))
def test_imports_point_downwards(part: str) -> None:
    upwards = [
        f"{path.relative_to(ROOT)} imports kvmkit.{name}"
        for path in modules()
        if part_of(path) == part
        for name in sorted(set(imported(path)))
        if name in LEVEL.keys() | STAND_ALONE and not allowed(part, name)
    ]
    assert upwards == []


def test_the_rule_catches_what_it_should(tmp_path: Path) -> None:
    bad = PACKAGE / "bus" / "nothing.py"
    node = ast.parse("from ..accel import choose\nfrom . import space").body
    assert [next(iter(_from(bad, each))) for each in node if isinstance(each, ast.ImportFrom)] == [
        "kvmkit.accel.choose",
        "kvmkit.bus.space",
    ]
    assert not allowed("bus", "accel")
    assert not allowed("host", "machine")
    assert not allowed("devices", "guest")
    assert allowed("cli", "guest")
