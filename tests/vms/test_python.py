"""`kvmkit.VM`, as a program uses it."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from kvmkit import VM
from kvmkit.errors import BadInput, KvmkitError
from kvmkit.manager import home as home_of
from kvmkit.manager.record import Record

pytestmark = pytest.mark.guest


def test_a_vm_for_a_block(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KVMKIT_HOME", str(home))
    with VM.create(accel="tcg", memory="128M") as vm:
        name = vm.name
        assert vm.state == "running"
        data = b"".join(b"%07d\n" % number for number in range(10_000))
        done = vm.exec(["sh", "-c", "cat; echo err >&2; exit 3"], input=data)
        assert (done.status, done.stderr, len(done.stdout)) == (3, b"err\n", len(data))
        pairs = zip(done.stdout.splitlines(), data.splitlines(), strict=True)
        assert [(came, sent) for came, sent in pairs if came != sent][:3] == []
        assert done.stdout == data
        results: list[int] = []
        threads = [
            threading.Thread(target=lambda n=n: results.append(vm.exec(["sh", "-c", f"exit {n}"]).status))
            for n in range(5)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(results) == [0, 1, 2, 3, 4]
        with pytest.raises(KvmkitError) as late:
            vm.exec(["sleep", "100"], timeout=0.3)
        assert late.value.exit_status == 124
        vm.copy_out("/etc/hostname", tmp_path / "hostname")
        assert (tmp_path / "hostname").read_text() == "debian\n"
        vm.pause()
        assert vm.info().state == "paused"
        vm.resume()
        vm.rename("other")
        assert vm.name == "other"
        ended = vm.stop()
        assert (ended.reason, ended.wanted) == ("stopped", True)
    with pytest.raises(BadInput, match="no VM"):
        VM(name)
    assert not (home / "data" / "machines" / "other").exists()


def test_what_can_not_be(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVMKIT_HOME", str(home))
    with pytest.raises(BadInput):
        VM.create("a/b")
    with pytest.raises(BadInput):
        VM.create(memory="much")
    vm = VM.create("idle", accel="tcg")
    with pytest.raises(KvmkitError, match="not running"):
        vm.exec(["true"])
    vm.remove()
    vm.close()


def test_a_spec_of_a_vm_that_has_just_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVMKIT_HOME", str(tmp_path))
    with home_of.create("short", b'{"memory": "64M"}', Record()) as made, home_of.open_home("short") as seen:
        assert seen.spec().memory == "64M"
        made.remove()
        with pytest.raises(BadInput, match="no VM 'short'"):  # `kvmkit start` while another removes it
            seen.spec()
