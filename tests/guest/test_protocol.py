from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmkit.guest.protocol import (
    FROM_GUEST,
    HEADER,
    HELLO,
    SERIAL,
    Decoder,
    Frame,
    ProtocolError,
    Type,
    encode,
)

GREETING = encode(Type.HELLO, 0, HELLO)


@st.composite
def guest_frames(draw: st.DrawFn) -> Frame:
    """Any frame that an agent may send after HELLO."""
    kind = draw(st.sampled_from([t for t in FROM_GUEST if t is not Type.HELLO]))
    least, most = FROM_GUEST[kind]
    payload = draw(st.binary(min_size=least, max_size=min(most, 64)))
    if kind in (Type.CLOSE, Type.CREDIT):
        payload = b"\0" + payload[1:]
    return Frame(kind, draw(st.integers(1, 255)), payload)


@given(st.lists(guest_frames(), max_size=20), st.lists(st.integers(1, 50), min_size=1))
def test_frames_survive_any_cutting(frames: list[Frame], cuts: list[int]) -> None:
    stream = GREETING + b"".join(encode(*frame) for frame in frames)
    decoder, found, at, turn = Decoder(), [], 0, 0
    while at < len(stream):
        size = cuts[turn % len(cuts)]
        found += decoder.feed(stream[at : at + size])
        at, turn = at + size, turn + 1
    assert found == [Frame(Type.HELLO, 0, HELLO), *frames]


@given(st.binary(max_size=2000))
def test_noise_before_hello_is_skipped(noise: bytes) -> None:
    decoder = Decoder()
    if b"\x81\0\7\0kvmkit" in noise + GREETING[:-1]:
        return
    assert decoder.feed(noise + GREETING) == [Frame(Type.HELLO, 0, HELLO)]


def test_noise_without_end_is_refused() -> None:
    decoder = Decoder()
    for _ in range(Decoder.NOISE_MAX // 1024):
        assert decoder.feed(b"x" * 1024) == []
    with pytest.raises(ProtocolError, match="not an agent's"):
        decoder.feed(b"x" * 1024)


@given(st.binary(max_size=3000))
def test_garbage_never_does_more_than_end_the_conversation(garbage: bytes) -> None:
    decoder = Decoder()
    decoder.feed(GREETING)
    try:
        frames = decoder.feed(garbage)
    except ProtocolError:
        return
    taken = sum(HEADER.size + len(frame.payload) for frame in frames)
    assert 0 <= len(garbage) - taken < HEADER.size + SERIAL.data


@pytest.mark.parametrize(
    "frame",
    [
        HEADER.pack(0x80, 1, 0),
        HEADER.pack(0x8E, 1, 0),
        HEADER.pack(Type.EXEC, 1, 20),  # only the host may
        HEADER.pack(Type.STDOUT, 1, SERIAL.data + 1),
        HEADER.pack(Type.STDOUT, 1, 0),
        HEADER.pack(Type.EXIT, 1, 1),
        encode(Type.EXIT, 0, b"\0\0"),
        encode(Type.CLOSE, 1, b"\1"),
        encode(Type.HELLO, 0, b"kvmkit\x03"),
    ],
)
def test_what_an_agent_never_sends_is_refused(frame: bytes) -> None:
    decoder = Decoder()
    decoder.feed(GREETING)
    with pytest.raises(ProtocolError):
        decoder.feed(frame)


def test_another_version_is_named() -> None:
    with pytest.raises(ProtocolError, match="speaks version 9"):
        Decoder().feed(encode(Type.HELLO, 0, HELLO[:-1] + b"\x09"))
