"""What can be said of a network card, and what can't."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmkit.errors import BadInput
from kvmkit.machine import Network, parse_network
from kvmkit.manager import networking
from kvmkit.net import passt
from kvmkit.net.options import Published, parse_publish


def test_networks_are_read() -> None:
    assert parse_network("user") == Network(kind="user")
    assert parse_network("user,loopback").loopback
    assert parse_network("tap=tap0,mac=52:54:00:12:34:56,queues=4,mtu=9000") == Network(
        kind="tap", name="tap0", mac="52:54:00:12:34:56", queues=4, mtu=9000
    )
    assert parse_network("socket=/a,,b").name == "/a,b"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("wifi", "no kind 'wifi' of network; there are user, tap=NAME"),
        ("tap", "--net tap=NAME"),
        ("user=x", "user has no name"),
        ("tap=a/b", "no name of a network interface"),
        ("bridge=longer-than-fifteen", "no name of a network interface"),
        ("network=Not-small", "a network's name is small letters"),
        ("switch=a b", "a switch's name"),
        ("socket=/" + "x" * 200, "up to 107 bytes"),
        ("tap=t,mac=01:00:00:00:00:01", "has to be even"),
        ("tap=t,mac=5254", "no MAC address"),
        ("tap=t,queues=9", "tap has up to 8"),
        ("user,queues=2", "user has up to 1"),
        ("tap=t,mtu=20", "68 to 65535"),
        ("tap=t,loopback", "loopback goes with --net user"),
        ("user,fast", "no option 'fast'"),
    ],
)
def test_networks_that_can_not_be(text: str, why: str) -> None:
    with pytest.raises(BadInput, match=why):
        parse_network(text)


def test_ports_are_read() -> None:
    assert parse_publish("8080:80") == Published("tcp", "127.0.0.1", 8080, 80)
    assert parse_publish("0.0.0.0:53:5353/udp") == Published("udp", "0.0.0.0", 53, 5353)


@pytest.mark.parametrize("text", ["80", "80:", "0:1", "1:65536", "a:1:2", "1:2/sctp", "[::1]:1:2", ":1:2", "1:2:3:4"])
def test_ports_that_can_not_be(text: str) -> None:
    with pytest.raises(BadInput, match="--publish"):
        parse_publish(text)


def test_a_port_is_published_once_and_by_user_alone() -> None:
    with pytest.raises(BadInput, match="twice"):
        Network(kind="user", publish=("80:80", "127.0.0.1:80:81")).check()
    Network(kind="user", publish=("80:80", "80:80/udp", "0.0.0.0:80:80")).check()
    with pytest.raises(BadInput, match="goes with --net user"):
        Network(kind="tap", name="t", publish=("80:80",)).check()


@given(st.text())
def test_any_text_is_read_or_refused_in_a_line(text: str) -> None:
    for parse in (parse_network, parse_publish):
        try:
            parse(text)
        except BadInput as error:
            line = str(error)
            assert line  # most texts are refused, but not all


def test_addresses_of_cards() -> None:
    cards = (
        Network(kind="user"),
        Network(kind="switch", name="s"),
        Network(kind="tap", name="t", mac="02:00:00:00:00:09"),
    )
    first, second, third = networking.settled(cards, "52:6b:00:00:00:ff", alone=False)
    assert (first.mac, second.mac, third.mac) == ("52:6b:00:00:00:ff", "52:6b:00:00:00:00", "02:00:00:00:00:09")
    assert networking.parameters((first, second, third)) == [
        "kvmkit.ip=eth0:10.0.2.15/24:10.0.2.2:10.0.2.3",
        "kvmkit.ip=eth1:169.254.1.1/16",
        "kvmkit.ip=eth2:dhcp",
    ]
    again = networking.settled(cards, "", alone=False)
    assert again[0].mac != networking.settled(cards, "", alone=False)[0].mac
    assert networking.settled(None, "", alone=True) == ()
    assert msgspec.structs.replace(again[0], mac="") == cards[0]


def test_name_servers_of_the_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own, behind = tmp_path / "resolv.conf", tmp_path / "behind"
    read = passt.nameservers
    monkeypatch.setattr(passt, "nameservers", lambda path: read(str(own if path == "/etc/resolv.conf" else behind)))
    for text, more, expected in (
        ("nameserver 192.0.2.1\n", "nameserver 192.0.2.2\n", "10.0.2.3"),
        ("# none\nnameserver ::1\nnameserver\n", "nameserver 192.0.2.2\n", "10.0.2.3"),
        ("options x\nnameserver 127.0.0.53\n", "nameserver 127.0.0.1\nnameserver 192.0.2.2\n", "192.0.2.2"),
        ("nameserver 127.0.0.1\n", "", "10.0.2.3"),
    ):
        own.write_text(text)
        behind.write_text(more)
        assert passt.nameserver() == expected
