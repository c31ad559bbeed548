"""What a card on a TAP device does with the kernel: `unshare -rn python tap_checks.py CHECK`, a network of its own."""

from __future__ import annotations

import fcntl
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from net_card import MAC, Card, frame

from kvmkit.errors import BadInput
from kvmkit.memory import GuestMemory
from kvmkit.net import interface
from kvmkit.net.tap import TapBackend
from kvmkit.testing import MmioDriver
from kvmkit.virtio import net
from kvmkit.virtio.net import Net

FEATURES = net.CTRL_VQ | net.MRG_RXBUF | net.MQ | net.MAC
OFFLOADS = net.CSUM | net.HOST_TSO4 | net.HOST_TSO6 | net.GUEST_CSUM | net.GUEST_TSO4 | net.GUEST_TSO6
OFFLOADS |= net.CTRL_GUEST_OFFLOADS
HOST, GUEST, NOBODY = "10.99.0.1", "10.99.0.2", "10.99.0.3"
SOL_PACKET, PACKET_VNET_HDR, PACKET_QDISC_BYPASS = 263, 15, 20
ETH_IP = 0x0800


class Cable:
    """A card on a new TAP device that is up, and a packet socket on the host's end of it."""

    def __init__(self, *, features: int = FEATURES, pairs: int = 1) -> None:
        self.memory = GuestMemory(16 << 20)
        self.tap = TapBackend("kt%d", pairs=pairs)
        interface.set_up(self.tap.name)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            for call, address in ((0x8916, HOST), (0x891C, "255.255.255.0")):
                where = struct.pack("16sHH4s8x", self.tap.name.encode(), socket.AF_INET, 0, socket.inet_aton(address))
                fcntl.ioctl(asking, call, where)
            raw = fcntl.ioctl(asking, 0x8927, struct.pack("16s24x", self.tap.name.encode()))
        self.host_mac = raw[18:24]
        self.driver = MmioDriver(Net(self.memory, self.tap, MAC), self.memory, features=features, size=64)
        self.driver.start()
        self.card = Card(self.driver, None)
        self.packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_IP))
        self.packets.bind((self.tap.name, ETH_IP))
        self.packets.settimeout(20)

    def close(self) -> None:
        self.packets.close()
        self.driver.close()
        self.memory.close()


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def packet(source: str, target: str, protocol: int, rest: bytes) -> bytes:
    head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(rest), 1, 0x4000, 64, protocol, 0,
                       socket.inet_aton(source), socket.inet_aton(target))  # fmt: skip
    return head[:10] + struct.pack(">H", checksum(head)) + head[12:] + rest


def segment(source: str, target: str, size: int) -> bytes:
    """A TCP segment in a packet, with the checksum of its pseudo-header alone."""
    pseudo = socket.inet_aton(source) + socket.inet_aton(target) + struct.pack(">HH", 6, 20 + size)
    rest = struct.pack(">HHIIBBHHH", 1000, 2000, 1, 0, 0x50, 0x10, 1000, ~checksum(pseudo) & 0xFFFF, 0) + bytes(size)
    return packet(source, target, 6, rest)


def ip_frame(to: bytes, payload: bytes) -> bytes:
    return frame(to, payload, b"\x08\x00")


def plain() -> None:
    cable = Cable()
    sent = ip_frame(cable.host_mac, packet(GUEST, NOBODY, 200, b"from the guest" * 5))
    cable.card.send(sent)
    assert cable.packets.recv(4096) == sent
    cable.card.offer(2000)
    back = ip_frame(MAC, packet(HOST, GUEST, 200, b"to the guest" * 5))
    cable.packets.send(back)
    got = cable.card.taken()[0][12:]
    assert got == back, got
    cable.close()
    assert not interface.exists(cable.tap.name), "it goes with its VM"


def checksums() -> None:
    """The guest leaves a checksum to the kernel, which takes the datagram."""
    cable = Cable(features=FEATURES | OFFLOADS)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((HOST, 5555))
        server.settimeout(20)
        data = b"unsummed"
        pseudo = socket.inet_aton(GUEST) + socket.inet_aton(HOST) + struct.pack(">HH", 17, 8 + len(data))
        datagram = struct.pack(">HHHH", 6666, 5555, 8 + len(data), ~checksum(pseudo) & 0xFFFF) + data
        header = struct.pack("<BBHHHHH", 1, 0, 0, 0, 34, 6, 0)
        cable.card.send(ip_frame(cable.host_mac, packet(GUEST, HOST, 17, datagram)), header)
        assert server.recv(100) == data
    # What leads outside of its frame is dropped before the kernel sees it.
    cable.card.send(
        ip_frame(cable.host_mac, packet(GUEST, HOST, 17, datagram)), struct.pack("<BBHHHHH", 1, 0, 0, 0, 34, 60, 0)
    )
    assert cable.card.counted()["sent"]["dropped"] == 1
    cable.close()


def large_from_guest() -> None:
    cable = Cable(features=FEATURES | OFFLOADS)
    sent = ip_frame(cable.host_mac, segment(GUEST, HOST, 30000))
    cable.card.send(sent, struct.pack("<BBHHHHH", 1, 1, 54, 1448, 34, 16, 0))
    assert len(cable.packets.recv(65536)) == len(sent)
    cable.card.send(sent, struct.pack("<BBHHHHH", 1, 1, 54, 0, 34, 16, 0))  # segments of no bytes
    assert cable.card.counted()["sent"] == {"frames": 1, "bytes": len(sent), "dropped": 1, "filtered": 0}
    cable.close()


def large_to_guest() -> None:
    """One that agreed to large frames gets them whole; one that did not gets them cut."""
    for features, count in ((FEATURES | OFFLOADS, 1), (FEATURES, 3)):
        cable = Cable(features=features)
        cable.packets.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        cable.card.offer(*[2000] * 12)
        big = ip_frame(MAC, segment(HOST, GUEST, 3 * 1400))
        cable.packets.send(struct.pack("<BBHHHH", 1, 1, 54, 1400, 34, 16) + big)
        if count == 1:
            parts = cable.card.taken(3)
            assert struct.unpack_from("<BBHHHHH", parts[0]) == (1, 1, 54, 1400, 34, 16, 3)
            assert len(b"".join(parts)) == 12 + len(big)
        else:
            assert (lengths := [len(part) for part in cable.card.taken(3)]) == [12 + 54 + 1400] * 3, lengths
        cable.close()
    cable = Cable(features=FEATURES | OFFLOADS)  # and one that has changed its mind
    assert cable.card.control(5, 0, struct.pack("<Q", 0))
    assert not cable.card.control(5, 0, struct.pack("<Q", net.GUEST_ECN))
    cable.packets.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    cable.card.offer(*[2000] * 12)
    cable.packets.send(struct.pack("<BBHHHH", 1, 1, 54, 1400, 34, 16) + ip_frame(MAC, segment(HOST, GUEST, 3 * 1400)))
    assert (lengths := [len(part) for part in cable.card.taken(3)]) == [12 + 54 + 1400] * 3, lengths
    cable.close()


def datagrams_from_guest() -> None:
    """UDP that the guest leaves to be cut: by size (USO, where this kernel has it), and into IP fragments (UFO)."""
    more = net.HOST_USO | net.HOST_UFO
    cable = Cable(features=FEATURES | OFFLOADS | more | net.GUEST_USO4 | net.GUEST_USO6 | net.GUEST_UFO)
    agreed = cable.card.device.accepted & more
    assert agreed & net.HOST_UFO
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((HOST, 5555))
        server.settimeout(20)
        data = bytes(range(250)) * 16
        pseudo = socket.inet_aton(GUEST) + socket.inet_aton(HOST) + struct.pack(">HH", 17, 8 + len(data))
        datagram = struct.pack(">HHHH", 6666, 5555, 8 + len(data), ~checksum(pseudo) & 0xFFFF) + data
        sent = ip_frame(cable.host_mac, packet(GUEST, HOST, 17, datagram))
        if agreed & net.HOST_USO:
            cable.card.send(sent, struct.pack("<BBHHHHH", 1, 5, 42, 1000, 34, 6, 0))
            assert [server.recv(65536) for _ in range(4)] == [data[i : i + 1000] for i in range(0, 4000, 1000)]
        cable.card.send(sent, struct.pack("<BBHHHHH", 1, 3, 42, 1400, 34, 6, 0))
        assert server.recv(65536) == data
        cable.card.send(sent, struct.pack("<BBHHHHH", 1, 2, 42, 1400, 34, 6, 0))  # there is no such kind
        assert cable.card.counted()["sent"]["dropped"] == 1
    assert cable.card.control(5, 0, struct.pack("<Q", net.GUEST_CSUM | net.GUEST_UFO))
    cable.close()


def pairs() -> None:
    cable = Cable(pairs=3)
    for count in (3, 1, 2):
        assert cable.card.control(4, 0, struct.pack("<H", count), queue=6)
        for queue in range(1, 2 * count, 2):
            sent = ip_frame(cable.host_mac, packet(GUEST, NOBODY, 200, bytes([queue]) * 50))
            cable.card.send(sent, queue=queue)
            assert cable.packets.recv(4096) == sent
    assert [pair["sent"]["frames"] for pair in cable.card.device.counters()] == [3, 2, 1]
    cable.close()


def bridge() -> None:
    """Two cards on one bridge reach each other."""
    subprocess.run("ip link add kb0 type bridge && ip link set kb0 up", shell=True, check=True)
    first, second = Cable(), Cable()
    for cable in (first, second):
        interface.add_to_bridge("kb0", cable.tap.name)
    second.card.offer(2000)
    first.card.send(frame(MAC, b"across" * 10))
    assert second.card.taken()[0][12:] == frame(MAC, b"across" * 10)
    first.close()
    second.close()
    for name, why in (("lo", "is no bridge"), ("kb9", "there is none")):
        with pytest.raises(BadInput, match=why):
            interface.add_to_bridge(name, "lo")


def refusals() -> None:
    subprocess.run("ip link add kd0 type bridge", shell=True, check=True)
    held = TapBackend("kt9")
    for name, why in (("kd0", "no TAP device"), ("kt9", "in use")):
        with pytest.raises(BadInput, match=why):
            TapBackend(name)
    held.close()
    subprocess.run("ip tuntap add dev kt8 mode tap", shell=True, check=True)
    kept = TapBackend("kt8", pairs=4)
    assert kept.pairs == 1, "it was made with one queue"
    kept.close()
    assert interface.exists("kt8")


CHECKS = (plain, checksums, large_from_guest, large_to_guest, datagrams_from_guest, pairs, bridge, refusals)

if __name__ == "__main__":
    subprocess.run("mount -t sysfs sysfs /sys", shell=True, check=True)  # this network's, not the host's
    Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("1")  # which would talk unasked
    next(check for check in CHECKS if check.__name__ == sys.argv[1])()
    print("done")
