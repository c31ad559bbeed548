"""Unpacked kernels are kept by content, and nothing that is wrong in the cache does harm."""

from __future__ import annotations

import os
import shutil
import time

import pytest
from kernel_images import LOAD, bzimage, code, elf64, payload

from kvmkit.boot import load, vmlinux_cache
from kvmkit.memory import GuestMemory
from kvmkit.paths import cache_dir

FIRST, SECOND = code(9000, seed=1), code(9000, seed=2)


def loaded(path):
    memory = GuestMemory(32 << 20)
    assert load(memory, path).kind == "linux"
    return memory.read(LOAD, len(FIRST))


def kept():
    return [path for path in (cache_dir() / "vmlinux").iterdir() if path.is_file()]


@pytest.fixture
def no_tick(monkeypatch):
    """Take files for older than the clock's tick."""
    monkeypatch.setattr(vmlinux_cache, "TICK_NS", 0)


def test_a_kernel_is_unpacked_once(file):
    path = file(bzimage(payload("gzip", elf64(FIRST))))
    assert loaded(path) == FIRST
    (entry,) = kept()
    assert entry.read_bytes() == elf64(FIRST)
    # A copy has the same content, so what is in the cache is used, whatever it is.
    entry.write_bytes(elf64(SECOND))
    assert loaded(shutil.copy(path, path.with_name("copy"))) == SECOND


@pytest.mark.usefixtures("no_tick")
def test_a_file_seen_before_is_not_read_again(file):
    path = file(bzimage(payload("gzip", elf64(FIRST))))
    assert loaded(path) == FIRST
    (link,) = (cache_dir() / "vmlinux/by-file").iterdir()
    (entry,) = kept()
    assert link.resolve() == entry.resolve()
    link.unlink()
    other = entry.with_name("0" * 64)
    other.write_bytes(elf64(SECOND))
    link.symlink_to(f"../{other.name}")
    assert loaded(path) == SECOND


@pytest.mark.usefixtures("no_tick")
def test_another_kernel_at_the_same_path_is_seen(file):
    assert loaded(file(bzimage(payload("gzip", elf64(FIRST))))) == FIRST
    time.sleep(0.02)
    assert loaded(file(bzimage(payload("gzip", elf64(SECOND))))) == SECOND


def test_a_file_just_written_is_told_apart_by_its_content(file):
    path = file(bzimage(payload("gzip", elf64(FIRST))))
    assert loaded(path) == FIRST
    assert list((cache_dir() / "vmlinux/by-file").iterdir()) == []


@pytest.mark.usefixtures("no_tick")
@pytest.mark.parametrize("damage", [b"", b"\x7fELF", elf64(FIRST)[:5000], b"rubbish" * 1000])
def test_a_damaged_entry_is_made_anew(damage, file):
    path = file(bzimage(payload("gzip", elf64(FIRST))))
    loaded(path)
    (entry,) = kept()
    entry.write_bytes(damage)
    assert loaded(path) == FIRST
    assert entry.read_bytes() == elf64(FIRST)


def test_no_cache_is_no_obstacle(file, monkeypatch):
    monkeypatch.setenv("KVMKIT_HOME", "/proc/nothing")
    assert loaded(file(bzimage(payload("gzip", elf64(FIRST))))) == FIRST


def test_the_cache_is_bounded(file, monkeypatch):
    monkeypatch.setattr(vmlinux_cache, "KEPT", 2)
    for seed in range(4):
        load(GuestMemory(32 << 20), file(bzimage(payload("gzip", elf64(code(3000, seed=seed))))))
        time.sleep(0.01)
    assert len(kept()) == 2
    assert not [path for path in os.listdir(cache_dir() / "vmlinux") if path.startswith(".")]
