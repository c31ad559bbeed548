"""Disks, cards and what else has been there for long, for the fuzzer: their requests, and what has to be answered."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Callable

from kvmkit.memory import GuestMemory
from kvmkit.testing import MmioDriver

from .bench import DISK, Bench, ask, disk_file
from .reader import Reader


def blk(kind: type[MmioDriver]) -> Bench:
    from kvmkit.virtio import blk as b

    def valid(bench: Bench, program: Reader, queue: int) -> tuple[bytes, int]:
        request = program.choose((0, 1, 1, 4, 8, 11, 13, program.number(1)))
        sector = program.number(1) if program.flag() else program.value()
        size = 512 * program.below(9) if program.flag() else program.below(600)
        if request in (11, 13):
            segments = [(program.number(1), program.number(2), program.below(3)) for _ in range(program.below(4))]
            body = b"".join(struct.pack("<QII", *segment) for segment in segments)
        else:
            body = bytes([request]) * (size if request == 1 else 0)
        return struct.pack("<IIQ", request, 0, sector) + body, 1 + (0 if body else size)

    def check(bench: Bench) -> None:
        os.ftruncate(bench.device.disk.fd, DISK)  # type: ignore[attr-defined]  # a disk's
        bench.device.resize()  # type: ignore[attr-defined]
        data = os.urandom(512)
        assert ask(bench, 1, struct.pack("<IIQ", 1, 0, 3) + data, 1) == b"\0"
        assert ask(bench, 0, struct.pack("<IIQ", 0, 0, 3), 513) == data + b"\0"

    extra = b.SEG_MAX | b.BLK_SIZE | b.FLUSH | b.TOPOLOGY | b.CONFIG_WCE | b.MQ | b.DISCARD | b.WRITE_ZEROES
    return Bench(
        lambda memory, log: b.Blk(memory, disk_file(), queues=2, uring=kind is MmioDriver, log=log),
        kind,
        valid,
        check,
        extra,
    )


def rng(kind: type[MmioDriver]) -> Bench:
    from kvmkit.virtio.rng import Rng

    def check(bench: Bench) -> None:
        assert len(ask(bench, 0, b"", 64)) == 64

    return Bench(lambda memory, log: Rng(memory, log=log), kind, lambda _, program, __: (b"", program.number(2)), check)


def scsi(kind: type[MmioDriver]) -> Bench:
    from kvmkit.virtio.scsi.cdrom import CdRom
    from kvmkit.virtio.scsi.device import Scsi, encode
    from kvmkit.virtio.scsi.disk import Disk
    from kvmkit.virtio.scsi.medium import FileMedium
    from kvmkit.virtio.scsi.target import Targets

    ops = (
        0x00,
        0x03,
        0x08,
        0x0A,
        0x12,
        0x15,
        0x1A,
        0x1B,
        0x1E,
        0x25,
        0x28,
        0x2A,
        0x2F,
        0x35,
        0x41,
        0x42,
        0x43,
        0x46,
        0x4A,
    )
    ops += (0x55, 0x5A, 0x88, 0x8A, 0x8F, 0x91, 0x93, 0x9E, 0xA0, 0xA8, 0xAA, 0xAF)  # type: ignore[assignment]  # longer

    def make(memory: GuestMemory, log: Callable[[str], None]) -> Scsi:
        targets = Targets()
        targets.add(0, 0, Disk(FileMedium(disk_file()), serial="fuzz"))
        targets.add(0, 300, Disk(FileMedium(disk_file(readonly=True))))
        targets.add(1, 0, CdRom(FileMedium(disk_file(readonly=True))))
        return Scsi(memory, targets, uring=kind is MmioDriver, log=log)

    def valid(bench: Bench, program: Reader, queue: int) -> tuple[bytes, int]:
        lun = program.choose((encode(0, 0), encode(0, 0), encode(0, 300), encode(1, 0), program.bytes(8)))
        if queue == 0:
            kind = program.choose((0, 0, 0, 1, 2, program.number(1)))
            return struct.pack("<II", kind, program.below(9)) + lun + program.bytes(8), 5
        if queue == 1:
            return b"", 16
        op = program.choose(ops)
        length = (6, 10, 10, 16, 16, 12, 16, 16)[op >> 5]
        cdb = bytes([op]) + program.bytes(length - 1) if program.flag() else b""
        if not cdb:  # small numbers in the usual places
            first, count, flags = program.below(300), program.below(9), program.choose((0, 0, 1, 8, 0x10, 0x20))
            if length == 6:
                cdb = bytes([op, 0, 0, first & 0xFF, count, 0])
            elif length == 10:
                cdb = struct.pack(">BBIBHB", op, flags, first, 0, count * (8 if op == 0x42 else 1), 0)
            elif length == 12:
                cdb = struct.pack(">BBIIBB", op, flags, first, count, 0, 0)
            else:
                cdb = struct.pack(">BBQIBB", op, flags, first, count, 0, 0)
        body = program.bytes(program.below(64)) if program.flag() else bytes(512 * program.below(9))
        head = lun + program.bytes(8) + bytes([program.below(5), 0, 0])
        return head + cdb.ljust(32, b"\0") + body, 108 + 512 * program.below(9)

    def check(bench: Bench) -> None:
        for _ in range(12):  # what the unit still had to say
            head = encode(0, 0) + bytes(11)
            answer = ask(bench, 2, head + bytes.fromhex("1b 00 00 00 01 00").ljust(32, b"\0"), 108)
            if answer[10] == 0:
                break
        data = os.urandom(512)
        write = bytes.fromhex("2a 00 00000003 00 0001 00").ljust(32, b"\0")
        read = bytes.fromhex("28 00 00000003 00 0001 00").ljust(32, b"\0")
        assert ask(bench, 2, head + write + data, 108)[10:12] == b"\0\0"
        assert ask(bench, 2, head + read, 108 + 512)[108:] == data

    return Bench(make, kind, valid, check, 7)


def net(kind: type[MmioDriver]) -> Bench:
    from kvmkit.net.policy import FramePolicy
    from kvmkit.net.stream import StreamBackend
    from kvmkit.virtio.net import Net

    mac = bytes.fromhex("525400123456")
    listed = "allow=192.0.2.0/23:443,[2001:db8::]:53,10.0.0.0/7"
    policies = [FramePolicy(text, answering=(80,)) for text in ("", "deny", "dns", listed)]
    addresses = bytes.fromhex("ffffffffffff") + mac
    starts = (
        addresses + bytes.fromhex("0800 4500002000004000 4006 0000 0a000002 c0000201"),  # TCP over IPv4
        addresses + bytes.fromhex("0800 4f00005000000000 4011 0000 00000000 ffffffff"),  # UDP, with options
        addresses + bytes.fromhex("86dd 60000000 0020 11ff") + bytes(16) + bytes.fromhex("20010db8") + bytes(12),
        addresses + bytes.fromhex("86dd 60000000 0020 3aff") + bytes(16) + bytes.fromhex("ff02") + bytes(14),
    )
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)

    def valid(bench: Bench, program: Reader, queue: int) -> tuple[bytes, int]:
        with contextlib.suppress(BlockingIOError):
            theirs.recv(1 << 20)
            body = program.bytes(program.below(80))
            theirs.send(struct.pack(">I", len(mac + body)) + mac + body)
        if queue == 0:
            return b"", program.choose((12, 70, 1526, program.number(2)))
        if queue == 1:
            frame, choice = program.bytes(program.below(90)), program.number(1)
            header = program.bytes(12) if choice & 1 else bytes(12)
            if choice & 2:
                frame = starts[choice >> 2 & 3] + frame
            if choice & 0x80:
                bench.device.set_policy(policies[choice >> 4 & 3])  # type: ignore[attr-defined]
            return header + frame, 0
        command = program.choose((0, 1, 2, 3, 4, 5, program.number(1)))
        body = program.bytes(program.below(24))
        return bytes([command, program.below(7)]) + body, 1

    def check(bench: Bench) -> None:
        bench.device.set_policy(policies[0])  # type: ignore[attr-defined]
        frame = mac + bytes(6) + b"\x88\xb5" + os.urandom(60)
        ask(bench, 1, bytes(12) + frame, 0)
        bench.settle()
        with contextlib.suppress(BlockingIOError):
            while theirs.recv(1 << 20):
                pass

    def make(memory: GuestMemory, log: Callable[[str], None]) -> Net:
        return Net(memory, StreamBackend(ours), mac, log=log)

    extra = sum(1 << bit for bit in (0, 1, 2, 3, 5, 7, 8, 9, 11, 12, 13, 15, 16, 17, 18, 19, 20, 21, 23))
    return Bench(make, kind, valid, check, extra)


def vsock(kind: type[MmioDriver]) -> Bench:
    from kvmkit.virtio.vsock import Vsock

    def valid(bench: Bench, program: Reader, queue: int) -> tuple[bytes, int]:
        if queue != 1:
            return b"", program.choose((44, 64, 4096, program.number(2)))
        body = program.bytes(program.below(40))
        claimed = len(body) if program.flag() else program.value() & 0xFFFFFFFF
        source, target = program.choose((3, 3, 3, program.value())), program.choose((2, 2, 2, program.value()))
        ports = program.choose((1, 2, 1024, program.value() & 0xFFFFFFFF)), program.choose((1, 2, 1024, 9))
        head = struct.pack("<QQIIIHHIII", source, target, *ports, claimed, program.choose((1, 1, 0)), program.below(9),
                           program.below(8), program.value() & 0xFFFFFFFF, program.value() & 0xFFFFFFFF)  # fmt: skip
        return head + body, 0

    def check(bench: Bench) -> None:
        # A request to a port where nobody listens is answered by a reset.
        driver, memory = bench.driver, bench.memory
        driver.queues[0].add([(0x140000, 4096, True)])
        driver.queues[0].publish()
        bench.bell(0)
        head = struct.pack("<QQIIIHHIII", 3, 2, 4000, 4001, 0, 1, 1, 0, 65536, 0)
        ask(bench, 1, head, 0)
        bench.settle()
        found = driver.queues[0].collect()
        assert found, "no answer"
        assert memory.read(0x140000, found[0][1])[30:32] == b"\3\0"

    return Bench(lambda memory, log: Vsock(memory, 3, log=log), kind, valid, check)
