"""Rules for the files of this checkout: size, docstrings, names, versions."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import tomllib

import pytest

import kvmkit

from .tree import ROOT, files, sources, text_files

LONGEST = 800
DEEPEST = 4  # scripts/ready.sh looks for compiled modules this many directories below src/kvmkit


def test_no_file_is_long() -> None:
    long = {name: lines for name, text in text_files().items() if (lines := text.count("\n")) > LONGEST}
    assert {name for name in long if name != "LICENSE"} == set()


def test_every_source_says_what_it_is() -> None:
    silent = [
        str(path.relative_to(ROOT)) for path in sources(".py") if ast.get_docstring(ast.parse(path.read_text())) is None
    ]
    assert silent == []


def test_compiled_modules_lie_where_the_launcher_looks() -> None:
    package = ROOT / "src" / "kvmkit"
    assert [path for path in sources(".pxd") if len(path.relative_to(package).parts) > DEEPEST] == []


def test_every_compiled_module_has_its_types() -> None:
    """mypy reads the .pyi: without one it would read Cython's types, which mean nothing to it."""
    compiled = [path for path in sources(".pxd") if path.with_suffix(".py").exists()]
    untyped = [path for path in compiled if not path.with_suffix(".pyi").exists()]
    assert [str(path.relative_to(ROOT)) for path in untyped] == []


def test_the_version_is_one() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "kvmkit.__version__"}
    newest = re.search(r"^## \[([^]]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == kvmkit.__version__


def test_the_licence_is_named_once_and_kept_beside_it() -> None:
    assert 'license = "GPL-2.0-or-later"' in (ROOT / "pyproject.toml").read_text()
    assert "GNU GENERAL PUBLIC LICENSE" in (ROOT / "LICENSE").read_text()


# In pieces, so that this file does not hold what it looks for.
REGISTRIES = "|".join(
    name.replace(" ", r"\.")
    for name in (
        "pypi org",
        "pythonhosted org",
        "deb debian org",
        "ftp debian org",
        "security debian org",
        "snapshot debian org",
        "archive ubuntu com", "registry npmjs org", "crates io", "proxy golang org", "docker io", "ghcr io", "quay io",
    )
)  # fmt: skip


def test_no_registry_is_named() -> None:
    """Packages come from wherever pip and apt of the machine are told to take them."""
    found = {name for name, text in text_files().items() if re.search(rf"\b(?:{REGISTRIES})\b", text)}
    assert found == set()


def scripts() -> list[str]:
    by_name = [path for path in files() if path.suffix == ".sh"]
    by_line = [
        path
        for path in files()
        if not path.suffix and path.read_bytes()[:32].startswith((b"#!/bin/sh", b"#!/usr/bin/env sh"))
    ]
    return [str(path.relative_to(ROOT)) for path in by_name + by_line]


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_scripts_pass_shellcheck() -> None:
    assert {"kvmkit", "test", ".ci/run", "scripts/setup.sh"} <= set(scripts())
    done = subprocess.run(["shellcheck", "-x", *scripts()], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout + done.stderr == ""


@pytest.mark.parametrize("name", scripts())
def test_scripts_parse(name: str) -> None:
    done = subprocess.run(["sh", "-n", name], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
