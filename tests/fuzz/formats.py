"""Parsers of what files and the guest's agent say: they refuse in one line, or take it."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from pathlib import Path
from typing import Any

import msgspec

from kvmkit.errors import BadInput, KvmkitError
from kvmkit.memory import GuestMemory
from kvmkit.testing import MmioDriver, PciDriver

from .reader import EDGES, Reader


def one_line(error: Exception) -> None:
    """What is said of it is one line, with nothing that a terminal would obey."""
    assert str(error).isprintable(), str(error)


def agent(data: bytes) -> None:
    """Bytes that a guest's agent, or whoever speaks for it, sends."""
    from kvmkit.guest.client import AgentClient

    ours, theirs = socket.socketpair()
    fast, their_fast = socket.socketpair()
    program = Reader(data)
    reader, sink = os.pipe()  # of which nobody reads: it is full soon
    os.set_blocking(sink, False)
    fcntl.fcntl(sink, fcntl.F_SETPIPE_SZ, 4096)
    client = AgentClient(ours.fileno())
    started, said = [], 0
    try:
        theirs.setblocking(False)
        their_fast.setblocking(False)
        if program.flag():
            theirs.send(struct.pack("<BBH", 0x81, 0, 7) + b"kvmkit\1")
            client.wait_hello(1)
            if program.flag():
                client.attach(fast.fileno(), lambda: None)
                their_fast.send(struct.pack("<BBH", 0x81, 0, 7) + b"kvmkit\1")
                client.turn()
            for _ in range(program.below(3)):
                started.append(client.start(["x"], stdout=sink, stderr=sink))
        while program.more:
            if program.flag():  # a frame as far as it goes
                body = program.bytes(program.below(12))
                kind = 0x81 + program.below(14)
                claimed = len(body) if program.number(1) < 240 else program.number(2)
                piece = struct.pack("<BBH", kind, program.below(4), claimed) + body
            else:
                piece = program.bytes(1 + program.below(40))
            channel = their_fast if client.fast and program.flag() else theirs
            said += channel.send(piece)
            client.turn()
            kept = sum(len(output.pending) for command in started for output in command.outputs.values())
            assert kept <= said + 100 * len(started), "more is kept than was sent"
    except KvmkitError as error:
        one_line(error)
    except BlockingIOError:
        pass
    finally:
        for each in (ours, theirs, fast, their_fast):
            each.close()
        os.close(sink)
        os.close(reader)


def boot(data: bytes) -> None:
    """The head of a file that is to be a kernel."""
    from kvmkit.boot import bzimage, elf, identify, multiboot
    from kvmkit.boot.unpack import CannotUnpackError, unpack

    program = Reader(data)
    kind = program.below(5)
    base: Any = {0: _bzimage, 1: _elf64, 2: _elf32, 3: _multiboot}.get(kind, lambda: bytearray(64))()
    for _ in range(program.below(12)):
        at = program.number(2) % len(base)
        piece = program.value().to_bytes(8, "little")[: 1 << program.below(4)]
        base[at : at + len(piece)] = piece
    base = bytes(base) + program.rest()
    path = Path("kernel")
    identify.describe(base)
    if bzimage.is_bzimage(base):
        try:
            image = bzimage.parse(path, base, len(base))
            start, length = image.payload
            assert start + length <= len(base)
        except BadInput as error:
            one_line(error)
    try:
        elf.parse(memoryview(base))
    except elf.BadElfError as error:
        one_line(error)
    try:
        unpack(memoryview(program.rest() or base))
    except CannotUnpackError as error:
        one_line(error)
    header = multiboot.find(base)
    if header is not None:
        memory = GuestMemory(4 << 20)
        try:
            multiboot.load(memory, path, memoryview(base), header, [("m", memoryview(b"module"))], "line")
        except BadInput as error:
            one_line(error)
        finally:
            memory.close()


def _bzimage() -> bytearray:
    head = bytearray(0x2000)
    head[0x1F1] = 1
    struct.pack_into("<I", head, 0x1F4, 0x1C0)
    head[0x1FE:0x200] = b"\x55\xaa"
    head[0x201:0x206] = b"\x6aHdrS"
    struct.pack_into("<H", head, 0x206, 0x20F)
    struct.pack_into("<H", head, 0x236, 1)
    struct.pack_into("<IIIII", head, 0x22C, 0x7FFFFFFF, 0x200000, 1, 2047, 0)
    struct.pack_into("<II", head, 0x248, 0x400, 0x100)
    struct.pack_into("<QI", head, 0x258, 0x1000000, 0x100000)
    return head


def _elf64() -> bytearray:
    head = struct.pack(
        "<4sBBBB8xHHIQQQIHHHHHH", b"\x7fELF", 2, 1, 1, 0, 2, 62, 1, 0x100000, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    return bytearray((head + struct.pack("<IIQQQQQQ", 1, 5, 0, 0x100000, 0x100000, 256, 512, 4096)).ljust(512, b"\x90"))


def _elf32() -> bytearray:
    head = struct.pack(
        "<4sBBBB8xHHIIIIIHHHHHH", b"\x7fELF", 1, 1, 1, 0, 2, 3, 1, 0x100000, 52, 0, 0, 52, 32, 1, 0, 0, 0
    )
    return bytearray((head + struct.pack("<8I", 1, 0, 0x100000, 0x100000, 256, 512, 5, 4096)).ljust(512, b"\x90"))


def _multiboot() -> bytearray:
    magic, flags = 0x1BADB002, 0x10003
    header = struct.pack(
        "<8I", magic, flags, -(magic + flags) & 0xFFFFFFFF, 0x100000, 0x100000, 0x100100, 0x100200, 0x100040
    )
    return bytearray((header + _elf32()).ljust(1024, b"\x90"))


def states(data: bytes) -> None:
    """Saved states, which may come from a file of anybody's: each is refused in one line, or is one to go on from."""
    from .bench import RINGS
    from .targets import bench

    program = Reader(data)
    name = program.choose(("rng", "blk", "scsi", "vsock", "net", "console"))
    pci = program.flag()
    kind = PciDriver if pci else MmioDriver
    b = bench(name, kind)
    b.said.clear()
    b.due = 0
    b.program = program
    b.place(msix=False)
    b.driver.packed = b.driver.events = False
    b.start() if program.flag() else b.driver.start()
    for thing in (b.device, b.driver.pci if pci else b.driver.transport):
        state = damaged(program, msgspec.to_builtins(thing.state(), builtin_types=(bytes,)))
        try:
            thing.restore(state)
        except BadInput as error:
            one_line(error)
    b.memory.write(RINGS, program.bytes(128))
    b.settle()
    b.watch()
    b.finish()


def damaged(program: Reader, state: Any) -> Any:
    """The same shape and types, with some numbers others."""
    if isinstance(state, dict):
        return {key: damaged(program, value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return [damaged(program, value) for value in state]
    if isinstance(state, bool):
        return state ^ (program.number(1) == 1)
    if isinstance(state, int) and program.number(1) & 7 == 1:
        return program.value() if program.flag() else program.choose(EDGES)
    return state
