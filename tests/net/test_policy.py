"""What a guest may send."""

from __future__ import annotations

import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmkit.errors import BadInput
from kvmkit.net.policy import FramePolicy

TCP, UDP, ICMP, ICMP6 = 6, 17, 1, 58


def to(
    address: str, port: int = 0, protocol: int = TCP, *, source: int = 40000, flags: int = 2, fragment: int = 0
) -> bytes:
    target = ipaddress.ip_address(address)
    rest = struct.pack(">HHIIBB", source, port, 0, 0, 0x50, flags) if protocol in (TCP, UDP) else bytes([port])
    if target.version == 4:
        kind, head = (
            b"\x08\0",
            struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20, 0, fragment, 64, protocol, 0, bytes(4), target.packed),
        )
    else:
        kind, head = b"\x86\xdd", struct.pack(">IHBB16s16s", 6 << 28, 0, protocol, 64, bytes(16), target.packed)
    return bytes(12) + kind + head + rest


def test_everything_and_nothing() -> None:
    frames = [to("192.0.2.1", 80), bytes(12) + b"\x08\x06" + bytes(28), bytes(14), b""]
    assert all(FramePolicy().allows(frame) for frame in frames)
    assert not any(FramePolicy("deny").allows(frame) for frame in frames)


def test_a_list() -> None:
    policy = FramePolicy("allow=192.0.2.1:443,198.51.100.0/22,[2001:db8::1]:443,2001:db8:ff::/47")
    for frame in (
        to("192.0.2.1", 443), to("192.0.2.1", 443, UDP), to("198.51.103.9", 1), to("198.51.100.1", 8, ICMP),
        to("2001:db8::1", 443), to("2001:db8:fe::5", 22), to("192.0.2.1", 443, fragment=0x4000),
        bytes(12) + b"\x08\x06" + bytes(28), to("255.255.255.255", 67, UDP), to("ff02::1:2", 547, UDP),
        to("fe80::1", 135, ICMP6),
    ):  # fmt: skip
        assert policy.allows(frame), frame.hex()
    for frame in (
        to("192.0.2.1", 80), to("192.0.2.2", 443), to("198.51.104.1", 1), to("192.0.2.1", 8, ICMP),
        to("198.51.100.1", 0, UDP),
        to("2001:db8::2", 443), to("192.0.2.9", 67, UDP), to("2001:db8::9", 135, ICMP6), to("2001:db8::9", 547, UDP),
        to("198.51.100.1", 1, 47), to("198.51.100.1", 1, fragment=1), to("198.51.100.1", 1, fragment=0x2000 | 185),
        to("2001:db8:fe::5", 1, 44), bytes(12) + b"\x81\0" + to("198.51.100.1", 1)[12:], bytes(60),
        to("192.0.2.1", 53, UDP), to("192.0.2.1", 443)[:36],
    ):  # fmt: skip
        assert not policy.allows(frame), frame.hex()


def test_name_servers() -> None:
    anywhere, one = FramePolicy("dns"), FramePolicy("dns", nameserver="10.0.2.3")
    assert anywhere.allows(to("192.0.2.1", 53, UDP))
    assert anywhere.allows(to("2001:db8::1", 53))
    assert one.allows(to("10.0.2.3", 53, UDP))
    assert not one.allows(to("192.0.2.1", 53, UDP))
    assert not any(policy.allows(to("10.0.2.3", 80)) for policy in (anywhere, one))


def test_answers_from_published_ports() -> None:
    policy = FramePolicy("dns", answering=(80,))
    assert policy.allows(to("192.0.2.1", 5000, source=80, flags=0x12))
    assert not policy.allows(to("192.0.2.1", 5000, source=80, flags=0x02)), "it may not open a connection"
    assert not policy.allows(to("192.0.2.1", 5000, UDP, source=80, flags=0x12))
    assert not policy.allows(to("192.0.2.1", 5000, source=81, flags=0x10))


@pytest.mark.parametrize(
    "text", ["nothing", "allow", "allow=", "allow=x", "allow=1.2.3.4:0", "allow=1.2.3.4:99999", "allow=1.2.3.4/33"]
)
def test_policies_that_can_not_be(text: str) -> None:
    with pytest.raises(BadInput, match="--policy"):
        FramePolicy(text)
    with pytest.raises(BadInput, match="more than 64"):
        FramePolicy("allow=" + ",".join(f"10.0.0.{i}" for i in range(65)))


@given(st.binary(max_size=100))
def test_any_bytes(frame: bytes) -> None:
    policy = FramePolicy("allow=10.0.0.0/8")
    if policy.allows(b"\0" * 12 + b"\x08\0" + frame):
        assert frame[0] >> 4 == 4
        assert frame[16] == 10 or frame[16:20] == bytes([255] * 4)
