"""Where images are kept and what happens when one can't be built. The builds that succeed are in test_guest.py."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvmkit.errors import BadInput, HostError
from kvmkit.guest import images, store
from kvmkit.guest.tiny import Built, applets


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KVMKIT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def program(directory: Path, name: str, text: str) -> None:
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(f"#!/bin/sh\n{text}\n")
    (directory / name).chmod(0o755)


def left_over(home: Path) -> list[str]:
    return [p.name for p in (home / "cache" / "images" / "tiny").iterdir() if not p.name.endswith(".lock")]


def test_an_unknown_image_is_refused_with_the_known_ones() -> None:
    with pytest.raises(BadInput, match="no guest image 'plan9'; known: debian, debian-systemd, tiny"):
        images.ensure("plan9")


def test_without_apt_it_says_so_and_leaves_nothing(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("gcc", "as", "ld"):
        (tools / name).symlink_to(f"/usr/bin/{name}")
    monkeypatch.setenv("PATH", str(tools))
    with pytest.raises(HostError, match="needs apt-get"):
        images.ensure()
    assert left_over(home) == []


def test_without_a_compiler_it_says_what_to_install(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(HostError, match="apt-get install gcc"):
        images.ensure()
    assert left_over(home) == []


@pytest.mark.parametrize(
    ("sources", "words"),
    [
        ("", "does not find the package linux-image-cloud-amd64"),
        ("deb [trusted=no] file:/nowhere stable main", "linux-image-cloud-amd64 .*nowhere"),
        ("deb http://127.0.0.1:1/ stable main", "linux-image-cloud-amd64 .*127.0.0.1"),
        ("nonsense", "linux-image-cloud-amd64 .*sources.list"),
    ],
)
def test_sources_that_are_of_no_use(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sources: str, words: str
) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "sources.list").write_text(sources + "\n")
    config = tmp_path / "apt.conf"
    config.write_text(
        f'Dir::Etc::sourcelist "{tmp_path}/sources.list"; Dir::Etc::sourceparts "{tmp_path}/parts";\n'
        'Acquire::Retries "0";\n'
    )
    # apt reads this variable's file first, and the machine's configuration does not set these names.
    monkeypatch.setenv("APT_CONFIG", str(config))
    with pytest.raises(HostError, match=words) as caught:
        images.ensure()
    assert "\n" not in str(caught.value)
    assert left_over(home) == []


def test_a_source_without_a_signature_is_refused(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where the machine's own configuration would let it pass."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "Packages").write_text(
        "Package: linux-image-cloud-amd64\nVersion: 1\nArchitecture: amd64\nFilename: ./evil.deb\nSize: 1\n"
        "Depends: linux-image-1-cloud-amd64 (= 1)\n"
    )
    (tmp_path / "parts").mkdir()
    (tmp_path / "sources.list").write_text(f"deb file:{source} ./\n")
    config = tmp_path / "apt.conf"
    config.write_text(
        f'Dir::Etc::sourcelist "{tmp_path}/sources.list"; Dir::Etc::sourceparts "{tmp_path}/parts";\n'
        'Acquire::AllowInsecureRepositories "true"; APT::Get::AllowUnauthenticated "true";\n'
    )
    monkeypatch.setenv("APT_CONFIG", str(config))
    with pytest.raises(HostError, match=r"does not have a Release file|is not signed"):
        images.ensure()
    assert left_over(home) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_nothing_behind(home: Path, tmp_path: Path, number: signal.Signals) -> None:
    program(tmp_path / "bin", "apt-get", f"touch {tmp_path}/started; exec sleep 60")
    environment = {**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    code = "from kvmkit.guest.images import ensure; ensure()"
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.DEVNULL)
    while not (tmp_path / "started").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(30) != 0
    assert left_over(home) == []


def test_no_space_is_said_in_one_line(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "write", full)
    monkeypatch.setattr(
        "kvmkit.guest.tiny.build",
        lambda work, progress: Built(b"k", b"i", "6", {}),
    )
    with pytest.raises(HostError, match=r"can't build the guest image in .*: No space left"):
        images.ensure()
    assert left_over(home) == []


def test_applets_are_read_from_the_binary() -> None:
    assert applets(b"\x7fELF..\0[\0[[\0acpid\0zcat\0\0rest") == ["[", "[[", "acpid", "zcat"]
    with pytest.raises(HostError, match="no list of commands"):
        applets(b"\x7fELF")
