from __future__ import annotations

import io
import stat

from hypothesis import given
from hypothesis import strategies as st

from kvmkit.guest.cpio import CpioWriter


def parse(data: bytes) -> list[tuple[str, int, bytes, tuple[int, int]]]:
    """(name, mode, contents, device) of each entry of a newc archive."""
    entries, at = [], 0
    while True:
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        name_start = at + 110
        name = data[name_start : name_start + fields[11] - 1].decode()
        assert data[name_start + fields[11] - 1] == 0
        start = (name_start + fields[11] + 3) & ~3
        at = (start + fields[6] + 3) & ~3
        if name == "TRAILER!!!":
            assert not data[at:].strip(b"\0")
            return entries
        entries.append((name, fields[1], data[start : start + fields[6]], (fields[9], fields[10])))


@given(st.dictionaries(st.from_regex(r"[a-z]{1,5}", fullmatch=True), st.binary(max_size=40), max_size=10))
def test_files_come_back(files: dict[str, bytes]) -> None:
    out = io.BytesIO()
    cpio = CpioWriter(out)
    for name, data in files.items():
        cpio.file(name, data)
    cpio.finish()
    found = parse(out.getvalue())
    assert {name: data for name, _, data, _ in found} == files
    assert len(out.getvalue()) % 512 == 0


def test_kinds_and_missing_parents() -> None:
    out = io.BytesIO()
    cpio = CpioWriter(out)
    cpio.file("/usr/bin/tool", b"#!", 0o755)
    cpio.symlink("usr/bin/link", "tool")
    cpio.directory("tmp", 0o1777)
    cpio.character_device("dev/console", 5, 1)
    cpio.finish()
    assert parse(out.getvalue()) == [
        ("usr", stat.S_IFDIR | 0o755, b"", (0, 0)),
        ("usr/bin", stat.S_IFDIR | 0o755, b"", (0, 0)),
        ("usr/bin/tool", stat.S_IFREG | 0o755, b"#!", (0, 0)),
        ("usr/bin/link", stat.S_IFLNK | 0o777, b"tool", (0, 0)),
        ("tmp", stat.S_IFDIR | 0o1777, b"", (0, 0)),
        ("dev", stat.S_IFDIR | 0o755, b"", (0, 0)),
        ("dev/console", stat.S_IFCHR | 0o600, b"", (5, 1)),
    ]


def test_the_same_input_gives_the_same_bytes() -> None:
    def make() -> bytes:
        out = io.BytesIO()
        cpio = CpioWriter(out)
        cpio.file("a/b", b"data")
        cpio.finish()
        return out.getvalue()

    assert make() == make()
