"""The LZO decoder against lzop, and against everything that is not LZO."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_images import code

from kvmkit.boot import lzo, lzop

pytestmark = pytest.mark.skipif(shutil.which("lzop") is None, reason="needs lzop, to have something to unpack")

DATA = {
    "one byte": b"x",
    "short": b"abcabcabcabcabcabcabc",
    "zeros": bytes(700_000),
    "noise": os.urandom(300_000),
    "mixed": code(1_000_000),
    "far": code(40_000, seed=4) + os.urandom(9_000) + code(40_000, seed=4),
}


def packed(data, *options):
    return subprocess.run(["lzop", "-c", *options], input=data, capture_output=True, check=True).stdout


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("options", [("-9",), ("-1",), ("-3", "--crc32"), ("-9", "-F")])
def test_what_lzop_packs_is_unpacked(name, options):
    data = DATA[name]
    assert lzop.decompress(memoryview(packed(data, *options)), len(data)) == data


def test_more_than_allowed_is_refused():
    with pytest.raises(ValueError, match="longer"):
        lzop.decompress(memoryview(packed(bytes(9000))), 8999)


def test_every_truncation_is_refused():
    data = packed(code(3000))
    for length in range(len(data)):
        with pytest.raises(ValueError, match=r"truncated|not lzop"):
            lzop.decompress(memoryview(data)[:length], 3000)


def test_a_wrong_checksum_is_refused():
    data = bytearray(packed(os.urandom(500)))  # stored as it is
    data[-100] ^= 1
    with pytest.raises(ValueError, match="checksum"):
        lzop.decompress(memoryview(data), 500)


@given(st.binary(min_size=0, max_size=300), st.integers(0, 2000))
@settings(max_examples=1500, deadline=None)
def test_noise_is_refused_or_unpacked(noise, size):
    try:
        out = lzo.decompress(noise, size)
    except ValueError:
        return
    assert len(out) == size


@functools.cache
def packed_stream():
    """The LZO1X stream inside an lzop file of one block."""
    data = packed(code(4000), "-F")
    at = data.index((4000).to_bytes(4, "big"))
    length = int.from_bytes(data[at + 4 : at + 8], "big")
    return data[at + 8 : at + 8 + length]


@given(st.data())
@settings(max_examples=500, deadline=None)
def test_a_damaged_stream_is_refused_or_unpacked(data):
    stream = bytearray(packed_stream())
    for _ in range(data.draw(st.integers(1, 4))):
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    try:
        out = lzo.decompress(bytes(stream), 4000)
    except ValueError:
        return
    assert len(out) == 4000


def test_distances_and_lengths_at_their_edges():
    # Four literals, a match of three bytes at distance 4, end.
    stream = bytes([4 + 17]) + b"abcd" + bytes([0x40 | 3 << 2, 0]) + b"\x11\0\0"
    assert lzo.decompress(stream, 7) == b"abcdabc"
    with pytest.raises(ValueError, match="before its start"):
        lzo.decompress(bytes([4 + 17]) + b"abcd" + bytes([0x40 | 4 << 2, 0]) + b"\x11\0\0", 7)
    with pytest.raises(ValueError, match="length"):
        lzo.decompress(stream, 6)
    with pytest.raises(ValueError, match="length"):
        lzo.decompress(stream, 8)
    # A run: one literal, repeated with the longest form of a length.
    stream = bytes([1 + 17]) + b"a" + bytes([0x20, 0, 0, 5, 0, 0]) + b"\x11\0\0"
    assert lzo.decompress(stream, 1 + 31 + 2 * 255 + 5 + 2) == b"a" * 549
