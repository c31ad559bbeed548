"""Compressed initrds: a truncated one is refused before anything starts, whole ones in any order are taken."""

from __future__ import annotations

import bz2
import gzip
import lzma

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_images import CODECS, code, elf64

from kvmkit.boot import load
from kvmkit.boot.initrd import _wrong
from kvmkit.boot.packed_end import Budget, DamagedError, TruncatedError, UnknownError, skip
from kvmkit.errors import BadInput

PLAIN = code(3 << 20)
KINDS = ("gzip", "bzip2", "lzma", "xz", "lzo", "lz4", "zstd")


@pytest.fixture(scope="module")
def packed() -> dict[str, bytes]:
    """PLAIN in each format there is a packer for."""
    made = {}
    for kind in KINDS:
        try:
            made[kind] = CODECS[kind](PLAIN)
        except pytest.skip.Exception:
            continue
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_its_end_is_found_and_missed(packed, kind):
    if kind not in packed:
        pytest.skip(f"nothing here packs {kind}")
    whole = packed[kind]
    for behind in (b"", bytes(512), bytes(512) + packed["gzip"]):
        assert skip(memoryview(whole + behind)) in (len(whole), len(whole + behind))
    for left in (0.02, 0.5, 0.9):
        with pytest.raises(TruncatedError):
            skip(memoryview(whole)[: int(len(whole) * left)])
    with pytest.raises(TruncatedError):
        skip(memoryview(whole)[:-1])


def test_zstandard_frames_as_its_program_writes_them():
    import zstandard

    for options in ({}, {"write_checksum": True}, {"write_content_size": False}, {"write_checksum": True, "level": 1}):
        for plain in (b"", b"x", bytes(300_000), PLAIN[:200_000]):
            whole = zstandard.ZstdCompressor(**options).compress(plain)
            assert skip(memoryview(whole + b"more")) == len(whole)
            for left in range(0, len(whole), max(len(whole) // 50, 1)):
                with pytest.raises((TruncatedError, UnknownError) if left < 4 else TruncatedError):
                    skip(memoryview(whole)[:left])


def test_what_is_damaged_or_a_bomb_is_not_called_truncated(monkeypatch):
    for whole in (gzip.compress(PLAIN), bz2.compress(PLAIN)[:-40]):
        with pytest.raises(DamagedError):
            skip(memoryview(whole[:5000] + bytes(1000) + whole[6000:]))
    monkeypatch.setattr("kvmkit.boot.packed_end.LARGEST", 1 << 20)
    bombs = [gzip.compress(bytes(4 << 20))[:-1], bz2.compress(bytes(9 << 20))[:-1], lzma.compress(bytes(9 << 20))[:-1]]
    for data in (*bombs, b"", b"\x1f", b"plain"):
        with pytest.raises(UnknownError):
            skip(memoryview(data))


def test_all_streams_of_a_file_share_a_budget(memory, file, monkeypatch, tmp_path):
    monkeypatch.setattr("kvmkit.boot.packed_end.LARGEST", 5 << 20)
    member, budget = gzip.compress(bytes(2 << 20)), Budget()
    for left in (3 << 20, 1 << 20):
        assert skip(memoryview(member), budget) == len(member)
        assert budget.left == left
    with pytest.raises(UnknownError):
        skip(memoryview(member), budget)
    kernel, path = file(elf64(code(9000))), tmp_path / "initrd"
    path.write_bytes(member + member[:-1])
    with pytest.raises(BadInput, match="truncated"):
        load(memory, kernel, initrd=[path])
    path.write_bytes(2 * member + member[:-1])  # further than one looks
    load(memory, kernel, initrd=[path])


@st.composite
def archives(draw):
    """Plain ones, whose headers have numbers or what int() takes for some."""
    fields = st.sampled_from((b"%08X", b"-%07X", b"+%07x", b" %07X", b"%07X ", b"0x%06X", b"%03X_000", b"\0%07X"))
    made = b""
    for _ in range(draw(st.integers(1, 4))):
        size, length = (draw(fields) % draw(st.integers(0, 200)) for _ in range(2))
        made += b"070701" + b"0" * 48 + size + b"0" * 32 + length + b"0" * 8 + draw(st.binary(max_size=40))
        made += bytes(-len(made) % 4)
    return made


@given(data=st.binary(max_size=300) | archives())
@settings(deadline=None)
def test_any_bytes_are_walked_through(data):
    assert isinstance(_wrong(memoryview(data)), str)


def test_a_negative_size_is_no_way_back():
    data = b"070701" + b"0" * 48 + b"-000007C" + b"0" * 32 + b"00000009" + b"0" * 8 + b"12345678\0"
    assert _wrong(memoryview(data + bytes(9))) == ""


@given(data=st.binary(max_size=300), kind=st.sampled_from((b"\x28\xb5\x2f\xfd", b"\x02\x21\x4c\x18", b"\xfd7zXZ\0")))
@settings(deadline=None)
def test_noise_has_an_end_or_none(data, kind):
    try:
        assert len(kind) <= skip(memoryview(kind + data)) <= len(kind + data)
    except (TruncatedError, DamagedError, UnknownError):
        pass


def test_a_truncated_one_is_refused(memory, file, packed, tmp_path):
    from test_boot_linux import cpio_entry

    kernel, path = file(elf64(code(9000))), tmp_path / "initrd"
    microcode = (
        bytes(512) + cpio_entry("kernel/x86/microcode", b"x" * 5000) + cpio_entry("TRAILER!!!", b"") + bytes(400)
    )
    for whole in packed.values():
        for before in (b"", microcode):
            for behind in (b"", bytes(9), packed["zstd"]):
                path.write_bytes(before + whole + behind)
                load(memory, kernel, initrd=[path])
            path.write_bytes(before + whole[: len(whole) // 2])
            with pytest.raises(BadInput, match="it is truncated: its compressed data has no end"):
                load(memory, kernel, initrd=[path])


def test_one_with_a_wrong_checksum_is_refused(memory, file, tmp_path):
    whole = gzip.compress(PLAIN[:5000])
    (path := tmp_path / "initrd").write_bytes(whole[:-8] + b"12345678")
    with pytest.raises(BadInput, match=r"initrd: it is damaged: its compressed data can't be unpacked \(.*check"):
        load(memory, file(elf64(code(9000))), initrd=[path])
