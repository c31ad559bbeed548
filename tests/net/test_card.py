"""The network card against a driver in Python, with a socket for a network."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from net_card import BROADCAST, CONTROL, HEADER, MAC, OTHER, RECEIVE, TRANSMIT, Card, Peer, frame

from kvmkit.errors import BadInput
from kvmkit.memory import GuestMemory
from kvmkit.net.backend import Backend
from kvmkit.net.policy import FramePolicy
from kvmkit.net.stream import StreamBackend
from kvmkit.testing import MmioDriver, PciDriver
from kvmkit.virtio import net
from kvmkit.virtio.net import Net

MIB = 1 << 20
FEATURES = net.MAC | net.MTU | net.STATUS | net.CTRL_VQ | net.CTRL_RX | net.CTRL_RX_EXTRA | net.CTRL_VLAN
FEATURES |= net.CTRL_MAC_ADDR | net.GUEST_ANNOUNCE | net.MQ | net.MRG_RXBUF

formats = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
drivers = pytest.mark.parametrize("kind", [MmioDriver, PciDriver], ids=["mmio", "pci"])


Make = Callable[..., Card]


@pytest.fixture
def make() -> Iterator[Make]:
    memory = GuestMemory(16 * MIB)
    made: list[tuple[MmioDriver, Peer | None]] = []

    def make(
        *,
        kind: type[MmioDriver] = MmioDriver,
        packed: bool = False,
        features: int = FEATURES,
        backend: Backend | None = None,
        size: int = 64,
        start: bool = True,
        **options: object,
    ) -> Card:
        peer = None
        if backend is None:
            ours, theirs = socket.socketpair()
            backend, peer = StreamBackend(ours), Peer(theirs)
        device = Net(memory, backend, MAC, **options)  # type: ignore[arg-type]  # a test's own
        driver = kind(device, memory, packed=packed, features=features, size=size)
        made.append((driver, peer))
        if start:
            driver.start()
        return Card(driver, peer)

    yield make
    for driver, peer in made:
        driver.close()
        if peer is not None:
            peer.socket.close()
    memory.close()


@formats
@drivers
def test_frames_both_ways(make: Make, kind: type[MmioDriver], packed: bool) -> None:
    card = make(kind=kind, packed=packed)
    card.offer(2000, 2000, 2000)
    sent = [frame(payload=os.urandom(size)) for size in (46, 1500, 1986 - 12)]
    card.peer.send(*sent)
    got = card.taken(3)
    assert [part[HEADER:] for part in got] == sent
    assert {part[:HEADER] for part in got} == {bytes(10) + b"\1\0"}
    for size, cut in ((0, 0), (46, 12), (1500, 5), (65535 - 14, 100), (20000, 12 + 9000)):
        out = frame(OTHER, os.urandom(size))
        card.send(out, cut=cut)
        assert card.peer.receive() == out
    assert card.counted()["sent"]["frames"] == 5
    assert card.counted()["received"] == {"frames": 3, "bytes": sum(map(len, sent)), "dropped": 0, "filtered": 0}


@formats
def test_a_frame_over_several_buffers(make: Make, packed: bool) -> None:
    card = make(packed=packed)
    big = frame(payload=os.urandom(9000))
    card.offer(*[1000] * 10)
    card.peer.send(big, frame())
    first = card.taken(10)
    assert struct.unpack_from("<H", first[0], 10) == (10,)
    assert first[0][HEADER:] + b"".join(first[1:]) == big
    card.offer(64)  # too few for the second: it waits, and this buffer is kept for it
    time.sleep(0.03)
    assert card.driver.queues[RECEIVE].collect() == []
    card.offer(64)
    second = card.taken(2)
    assert second[0][HEADER:] + second[1] == frame()
    card.offer(64)
    card.peer.send(frame())
    time.sleep(0.05)
    card.driver.start()  # with a buffer taken and not given back, and a frame that waits: a reset forgets both
    card.posted.clear()
    card.offer(2000)
    card.peer.send(frame(payload=b"new"))
    assert card.taken()[0][HEADER:] == frame(payload=b"new")


def test_without_merging_what_does_not_fit_is_dropped(make: Make) -> None:
    card = make(features=FEATURES & ~net.MRG_RXBUF)
    card.offer(200, 200)
    card.peer.send(frame(), frame(payload=bytes(500)), frame(payload=b"y" * 60))
    assert [part[HEADER:] for part in card.taken(2)] == [frame(), frame(payload=b"y" * 60)]
    assert card.counted()["received"]["dropped"] == 1


def test_buffers_so_small_that_none_holds_a_frame(make: Make) -> None:
    card = make(size=256)
    card.offer(*[13] * 100)
    card.peer.send(frame(payload=bytes(900)), frame(payload=b""))
    assert [len(part) for part in card.taken(2)] == [13, 13], "12 bytes of header and 1 of the frame, then 13"
    assert card.counted()["received"]["dropped"] == 1


def test_what_has_no_buffers_waits_with_its_sender(make: Make) -> None:
    card = make()
    card.peer.socket.setblocking(False)
    sent = 0
    try:
        while sent < 1 << 26:
            sent += card.peer.socket.send(struct.pack(">I", 1014) + frame(payload=bytes(1000)))
    except BlockingIOError:
        pass
    assert sent < 1 << 22, "it took what no buffer was there for"
    card.offer(2000)
    assert card.taken()[0][HEADER:] == frame(payload=bytes(1000))


def settled(more: Callable[[], int]) -> int:
    """The sum of what `more` gives, when something came and then nothing for a while; a busy host may take its time."""
    total, end = 0, time.monotonic() + 30
    quiet = 0
    while quiet < 5 and time.monotonic() < end:
        came = more()
        total += came
        quiet = 0 if came or not total else quiet + 1
        time.sleep(0.05)
    return total


@formats
def test_a_guest_that_sends_faster_than_the_network_takes(make: Make, packed: bool) -> None:
    card = make(packed=packed, size=64)
    out = frame(OTHER, os.urandom(30000))
    card.memory.write(card.at, bytes(HEADER) + out)
    ring = card.driver.queues[TRANSMIT]
    for _ in range(64):
        ring.add([(card.at, HEADER + len(out), False)])
    card.driver.ring(TRANSMIT)
    early = settled(lambda: len(ring.collect()))
    assert 0 < early < 64, "64 of them are more than a socket and our buffer hold"
    for _ in range(64):
        assert card.peer.receive() == out
    assert early + len(card.driver.collect(TRANSMIT, 64 - early)) == 64


@formats
def test_malformed_frames_need_a_reset(make: Make, packed: bool) -> None:
    card = make(packed=packed)
    at = card.at
    bad: list[tuple[int, list[tuple[int, int, bool]], str]] = [
        (TRANSMIT, [(at, 11, False)], "without its header"),
        (TRANSMIT, [(at, 100, False), (at, 100, True)], "room for an answer"),
        (TRANSMIT, [(at, 65536, False), (at, 64, False)], "more than 65553 bytes"),
        (TRANSMIT, [(15 * MIB, 2 * MIB, False)], "outside of memory"),
        (RECEIVE, [(at, 11, True)], "too small"),
        (RECEIVE, [(at, 12, False), (at, 2000, True)], "not to be written"),
    ]
    for queue, parts, why in bad:
        card.driver.queues[queue].add(parts)
        card.peer.send(frame())
        card.driver.ring(queue)
        card.wait_config()
        assert why in card.device.failure
        card.driver.start()
        card.send(frame(OTHER))
        assert card.peer.receive() == frame(OTHER)


def test_headers_that_ask_for_what_was_not_agreed_on(make: Make) -> None:
    card = make()
    for header in (b"\1\0" + bytes(10), b"\0\1" + bytes(10), b"\0\5" + bytes(10), b"\xff" * 12, b"\0\x80" + bytes(10)):
        card.send(frame(OTHER), header)
    card.send(b"short")
    card.send(frame(OTHER))
    assert card.peer.receive() == frame(OTHER)
    assert card.counted()["sent"]["dropped"] == 6
    assert not card.driver.register(0x70) & 64


def test_features_that_need_others(make: Make) -> None:
    card = make(start=False)
    for features in (net.CTRL_RX, net.CTRL_RX_EXTRA | net.CTRL_VQ, net.MQ, net.GUEST_ANNOUNCE, net.GUEST_TSO4):
        assert not card.device.accepts(features)
    assert card.device.accepts(net.CTRL_VQ | net.CTRL_RX | net.CTRL_RX_EXTRA)
    assert not card.device.features & (net.CSUM | net.GUEST_CSUM | net.HOST_TSO4), "a socket's peer does none of it"


def reaches(card: Card, *frames: bytes) -> list[bool]:
    """Which of them the card takes."""
    result = []
    for one in frames:
        card.peer.send(one, frame(MAC, b"the end"))
        card.offer(2000)
        first = card.taken()[0][HEADER:]
        result.append(first == one)
        if result[-1]:
            card.offer(2000)
            assert card.taken()[0][HEADER:] == frame(MAC, b"the end")
    return result


def test_what_it_takes_is_the_drivers_choice(make: Make) -> None:
    card = make()
    group, listed = b"\1\0\x5e\0\0\1", bytes.fromhex("5254000000aa")
    frames = [frame(), frame(OTHER), frame(BROADCAST), frame(group), frame(listed)]
    assert reaches(card, *frames) == [True] * 5, "promiscuous until it says otherwise"
    assert card.control(0, 0, b"\0")
    assert reaches(card, *frames) == [True, False, True, False, False]
    assert card.control(1, 0, struct.pack("<I6sI6s", 1, listed, 1, group))
    assert reaches(card, *frames) == [True, False, True, True, True]
    for number, wanted in (
        (1, [True, False, True, True, True]),
        (2, [True, True, True, True, True]),
        (3, [True, True, True, False, True]),
        (5, [True, True, False, False, True]),
    ):
        assert card.control(0, number, b"\1")
        assert reaches(card, *frames) == wanted
    many = bytes(range(6)) * 100
    assert card.control(1, 0, struct.pack("<I", 100) + many + struct.pack("<I", 0))
    assert card.control(0, 2, b"\0")
    assert reaches(card, frame(OTHER)) == [True], "more addresses than it has places for: all"
    assert card.control(1, 1, OTHER)
    assert card.device.mac == OTHER
    assert card.driver.register(0x100, 4) == int.from_bytes(OTHER[:4], "little")
    card.driver.start()
    assert card.device.mac == MAC, "a reset brings the card's own address back"


def test_vlans(make: Make) -> None:
    card = make()
    tagged = [frame(payload=struct.pack(">HH", tag, 0x88B5) + bytes(46), kind=b"\x81\0") for tag in (5, 0x2005, 6)]
    assert reaches(card, frame(), *tagged) == [True, False, False, False]
    assert card.control(2, 0, struct.pack("<H", 5))
    assert reaches(card, *tagged) == [True, True, False]
    assert card.control(2, 1, struct.pack("<H", 5))
    assert reaches(card, *tagged) == [False, False, False]
    assert not card.control(2, 0, struct.pack("<H", 4096))
    card = make(features=FEATURES & ~net.CTRL_VLAN)
    assert reaches(card, *tagged) == [True, True, True]
    assert not card.control(2, 0, struct.pack("<H", 5))


def test_control_commands_that_can_not_be(make: Make) -> None:
    card = make()
    for kind, number, data in (
        (0, 0, b""), (0, 0, b"\0\0"), (0, 9, b"\1"), (1, 0, b""), (1, 0, struct.pack("<I", 1)), (9, 0, b"\0"),
        (1, 0, struct.pack("<II", 0xFFFFFFFF, 0)), (1, 0, struct.pack("<III", 0, 0, 0)), (1, 1, MAC[:5]),
        (4, 0, b"\1\0"), (2, 0, b"\1"), (2, 2, b"\1\0"), (3, 1, b""), (5, 0, bytes(8)),
        (1, 0, struct.pack("<I", 1) + MAC),
    ):  # fmt: skip
        assert not card.control(kind, number, data), (kind, number, data)
    assert card.driver.request(CONTROL, b"\0", 1) == b"\1"
    assert card.control(0, 0, b"\1")


def test_link_and_announcement(make: Make) -> None:
    card = make(mtu=9000)
    assert card.driver.register(0x106, 2) == 1
    assert card.driver.register(0x10A, 2) == 9000
    card.device.set_link(False)
    card.wait_config()
    assert card.driver.register(0x106, 2) == 0
    card.send(frame(OTHER))
    card.offer(2000)
    card.peer.send(frame(payload=b"lost"))
    while not card.counted()["received"]["dropped"]:
        time.sleep(0.001)
    card.device.set_link(True)
    card.peer.send(frame())
    assert card.taken()[0][HEADER:] == frame()
    assert card.driver.register(0x106, 2) == 3, "up, and to announce itself"
    assert card.control(3, 0, b"")
    assert card.driver.register(0x106, 2) == 1
    assert card.peer.receive(0.01) == b""


def test_a_network_that_goes_and_comes_back(make: Make) -> None:
    said: list[str] = []
    card = make(log=said.append)
    card.offer(2000)
    card.peer.socket.close()
    card.wait_config()
    assert card.driver.register(0x106, 2) == 0
    card.send(frame(OTHER))
    assert said == ["net: the network is gone: its other end was closed"]
    ours, theirs = socket.socketpair()
    card.device.replace_backend(StreamBackend(ours))
    peer = Peer(theirs)
    peer.send(frame())
    assert card.taken()[0][HEADER:] == frame()
    card.send(frame(OTHER))
    assert peer.receive() == frame(OTHER)
    theirs.close()


@pytest.mark.parametrize("bad", [bytes(4), b"\xff\xff\xff\xff", struct.pack(">I", 70000)])
def test_a_peer_that_sends_no_frames(make: Make, bad: bytes) -> None:
    said: list[str] = []
    card = make(log=said.append)
    card.offer(2000)
    card.peer.socket.sendall(bad)
    card.wait_config()
    assert said == ["net: the network is gone: what it sends are no frames"]


class Pairs(Backend):
    """Two pairs, whose frames come back on the pair that they went out on."""

    def __init__(self, pairs: int = 2) -> None:
        super().__init__("pairs", pairs=pairs)
        self.used: list[int] = []

    def set_pairs(self, pairs: int) -> None:
        self.used.append(pairs)


class Echo(Backend):
    def __init__(self) -> None:
        super().__init__("echo")
        self.frames: list[bytes] = []

    def send_frame(self, frame: bytes) -> None:
        self.frames.append(frame)

    def receive_frame(self) -> bytes | None:
        return self.frames.pop(0) if self.frames else None


def test_a_backend_in_python(make: Make) -> None:
    card = make(backend=Echo())
    card.offer(2000, 2000)
    for payload in (b"first" * 10, b"second" * 10):
        card.send(frame(payload=payload))
        assert card.taken()[0][HEADER:] == frame(payload=payload)


def test_several_pairs(make: Make) -> None:
    backend = Pairs()
    card = make(backend=backend)
    assert len(card.driver.queues) == 5
    assert card.driver.register(0x108, 2) == 2
    assert card.control(4, 0, b"\2\0", queue=4)
    assert not card.control(4, 0, b"\3\0", queue=4)
    assert not card.control(4, 0, b"\0\0", queue=4)
    assert backend.used == [1, 2]
    card.send(frame(), queue=3)
    assert [pair["sent"]["frames"] for pair in card.device.counters()] == [0, 1]
    card = make(backend=Pairs(), features=FEATURES & ~net.MQ)
    assert card.control(0, 0, b"\1"), "without MQ the third queue is the control queue"
    for pairs in (0, 9):
        with pytest.raises(BadInput, match="queue pairs"):
            Net(card.memory, Pairs(pairs), MAC)


def test_rate_limits_hold_each_direction(make: Make) -> None:
    card = make()
    card.device.set_limit(operations=100, operation_burst=1)
    began = time.monotonic()
    for _ in range(11):
        card.send(frame(OTHER))
        assert card.peer.receive() == frame(OTHER)
    assert time.monotonic() - began >= 0.09
    began = time.monotonic()
    card.peer.send(*[frame()] * 11)
    card.offer(*[2000] * 11)
    assert len(card.taken(11)) == 11
    assert time.monotonic() - began >= 0.08
    card.device.set_limit(bytes=1, byte_burst=1)
    card.peer.send(frame(), frame())
    card.offer(2000, 2000)
    assert len(card.taken(1)) == 1
    time.sleep(0.05)
    assert card.driver.queues[RECEIVE].collect() == []
    card.device.set_limit()
    assert len(card.taken(1)) == 1


@formats
def test_reset_under_load(make: Make, packed: bool) -> None:
    card = make(packed=packed)
    for turn in range(15):
        card.offer(*[100] * 20)
        card.peer.send(*[frame(payload=bytes([turn]) * 200)] * 5)
        card.memory.write(card.at, bytes(HEADER) + frame(OTHER, b"sent"))
        for _ in range(5):
            card.driver.queues[TRANSMIT].add([(card.at, HEADER + 18, False)])
        card.driver.ring(TRANSMIT)
        card.driver.start()
        card.posted.clear()
    card.peer.send(frame(payload=b"last"))
    while True:
        card.offer(2000)
        if card.taken()[0][HEADER:] == frame(payload=b"last"):
            break


def test_state_goes_to_another_card(make: Make) -> None:
    card = make()
    assert card.control(0, 0, b"\0")
    assert card.control(1, 1, OTHER)
    assert card.control(2, 0, b"\5\0")
    card.device.hold()
    state = card.device.state()
    other = make(start=False)
    other.device.hold()
    other.device.restore(state)
    assert other.device.mac == OTHER
    assert other.device.filter.state() == card.device.filter.state()
    assert not other.device.filter.wants(frame(MAC))
    assert other.device.filter.wants(frame(OTHER))


@pytest.mark.parametrize(
    ("lost", "change", "why"),
    [
        (net.CTRL_VQ, {}, "do not go together"),
        (net.MQ, {"pairs": 2}, "more queues than it has"),
        (0, {"pairs": 0}, "pairs"),
        (0, {"mac": MAC[:5]}, "mac"),
        (0, {"link": "up"}, "link"),
        (0, {"filter": {"modes": [True]}}, "filter"),
    ],
    ids=["features", "queues without multiqueue", "no queue", "mac", "link", "filter"],
)
def test_a_state_that_no_card_can_have_is_refused(make: Make, lost: int, change: dict, why: str) -> None:
    """`lost`: features that its driver had accepted."""
    card = make()
    card.device.hold()
    state = card.device.state()
    other = make(start=False)
    other.device.hold()
    with pytest.raises(BadInput, match=why):
        other.device.restore({**state, "accepted": state["accepted"] & ~lost, "net": {**state["net"], **change}})


def test_a_policy_holds_at_once(make: Make) -> None:
    card = make()
    asking = frame(OTHER, bytes(28), b"\x08\x06")
    card.device.set_policy(FramePolicy("dns"))
    card.send(frame(OTHER))
    card.send(asking)
    assert card.peer.receive() == asking
    card.device.set_policy(FramePolicy("deny"))
    card.send(asking)
    card.peer.send(frame())
    card.offer(2000)
    while not card.counted()["received"]["filtered"]:
        time.sleep(0.001)
    card.device.set_policy(FramePolicy())
    card.send(frame(OTHER))
    assert card.peer.receive() == frame(OTHER)
    assert card.counted()["sent"]["filtered"] == 2
    card.peer.send(frame(payload=b"through"))
    assert card.taken()[0][HEADER:] == frame(payload=b"through")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    packed=st.booleans(),
    pieces=st.lists(
        st.tuples(st.sampled_from([0, 0x1000, 0xFFF000, 0xC0000000, 1 << 63]), st.integers(0, 70000), st.booleans()),
        min_size=1,
        max_size=4,
    ),
    header=st.binary(min_size=12, max_size=12),
    queue=st.sampled_from([RECEIVE, TRANSMIT, CONTROL]),
)
def test_any_chain(make: Make, packed: bool, pieces: list[tuple[int, int, bool]], header: bytes, queue: int) -> None:
    """It comes back, or the device needs a reset; and after that all is well."""
    card = make(packed=packed)
    card.memory.write(card.at, header)
    ring = card.driver.queues[queue]
    ring.add([(card.at + where if where < 0x2000 else where, size, write) for where, size, write in pieces])
    card.peer.send(frame())
    card.driver.ring(queue)
    until = time.monotonic() + 20
    while not ring.collect() and not card.driver.register(0x70) & 64 and time.monotonic() < until:
        if queue == RECEIVE:
            break  # too small a buffer waits for more
        time.sleep(0.0005)
    assert time.monotonic() < until
    card.driver.start()
    card.send(frame(OTHER, b"after" * 10))
    while card.peer.receive() != frame(OTHER, b"after" * 10):
        pass
    card.driver.close()


def test_cards_that_can_not_be() -> None:
    memory = GuestMemory(MIB)
    for mac, mtu, why in ((b"\1" + bytes(5), 0, "no address"), (bytes(6), 0, "no address"), (MAC, 67, "MTU")):
        with pytest.raises(BadInput, match=why):
            Net(memory, Echo(), mac, mtu=mtu)
    memory.close()
