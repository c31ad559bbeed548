"""A multiboot kernel of a few hundred bytes that leaves the guest N times from ring 3, made here byte by byte.

Ring 3, because a KVM without VMX or SVM interprets ring 0, and then its interpreter is what one would time. The guest
writes a line to its first serial port before the exits and one after: whoever reads that port takes the time.

Sources: Multiboot Specification 0.6.96; Intel SDM volume 3, 10.8.5 (entering IA-32e mode).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Literal

Kind = Literal["port", "device", "memory"]
KINDS: tuple[Kind, ...] = ("port", "device", "memory")

SERIAL = 0x3F8
UNCLAIMED_PORT = 0x1080
SCRATCH = SERIAL + 7
"""The serial port's scratch register: the simplest real device that every PC has."""
UNCLAIMED_MEMORY = 0xD0000000
DEBUG_EXIT = 0xF4
START, END = b"S\n", b"E\n"
WARM_UP = 100
TAIL = 1000
"""Exits after the second line: as long as they take, there is a process that can be asked for its CPU time."""
MAX_EXITS = 0x7FFFFFFF

BASE = 0x100000
ENTRY = BASE + 0x20
LONG = BASE + 0x100
USER = BASE + 0x200
GDTR = BASE + 0xF00
GDT = BASE + 0x1000
STACK = BASE + 0x2000
TSS = BASE + 0x2000
PML4 = BASE + 0x5000
PDPT, DIRECTORIES = PML4 + 0x1000, PML4 + 0x2000
SIZE = 0xB000

LONG_CODE, USER_DATA, USER_CODE, TASK = 0x10, 0x23, 0x2B, 0x30
TSS_LIMIT = 0x68 + 0x2000  # with an I/O permission bitmap that allows every port
ELF_HEADERS = 52 + 32


def build(kind: Kind, exits: int) -> bytes:
    """The kernel, an ELF file: `exits` (at most MAX_EXITS) writes of `kind`, between two lines on the serial port.

    "port" is an output to a port that nobody answers, "device" one to the serial port's scratch register, "memory" a
    4-byte store where there is neither RAM nor a device. At its end it writes 0 to the debug exit port.
    """
    if not 1 <= exits <= MAX_EXITS:
        raise ValueError(f"{exits} exits")
    return image(_user(kind, exits), {})


def image(user: bytes, data: Mapping[int, bytes]) -> bytes:
    """An ELF file that runs `user` (64-bit code at USER) in ring 3, with `data` at addresses from BASE + SIZE on."""
    image = bytearray(max([BASE + SIZE, *(address + len(part) for address, part in data.items())]) - BASE)

    def put(address: int, data: bytes) -> None:
        image[address - BASE : address - BASE + len(data)] = data

    for address, part in data.items():
        put(address, part)

    magic = 0x1BADB002
    put(BASE, struct.pack("<III", magic, 0, -magic & 0xFFFFFFFF))
    put(ENTRY, _to_long_mode())
    put(LONG, _to_ring_3())
    put(USER, user)
    put(GDTR, struct.pack("<HI", 63, GDT))
    # Null, 32-bit code, 64-bit code, data, then data and 64-bit code of ring 3, and the task state.
    task = 0x0000890000000000 | TSS_LIMIT | (TSS & 0xFFFFFF) << 16
    segments = (0, 0xCF9B000000FFFF, 0xAF9B000000FFFF, 0xCF93000000FFFF, 0xCFF3000000FFFF, 0xAFFB000000FFFF, task, 0)
    put(GDT, struct.pack("<8Q", *segments))
    put(TSS + 0x66, struct.pack("<H", 0x68))
    put(TSS + TSS_LIMIT, b"\xff")
    put(PML4, struct.pack("<Q", PDPT | 7))
    put(PDPT, struct.pack("<4Q", *(DIRECTORIES + 0x1000 * i | 7 for i in range(4))))
    put(DIRECTORIES, struct.pack("<2048Q", *(i << 21 | 0x87 for i in range(2048))))  # 4 GiB at itself, for every ring
    return _elf(bytes(image))


def _elf(image: bytes) -> bytes:
    identity = b"\x7fELF\x01\x01\x01".ljust(16, b"\0")
    header = struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, ENTRY, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    segment = struct.pack("<IIIIIIII", 1, ELF_HEADERS, BASE, BASE, len(image), len(image), 7, 4)
    return identity + header + segment + image


def _word(opcode: str, value: int) -> bytes:
    """An instruction that ends in a 32-bit number."""
    return bytes.fromhex(opcode) + struct.pack("<I", value)


def _to_long_mode() -> bytes:
    return (
        b"\xfa"  # cli
        + _word("0f0115", GDTR)  # lgdt [GDTR]
        + _word("b8", 0x20)  # mov eax, CR4.PAE
        + bytes.fromhex("0f22e0")  # mov cr4, eax
        + _word("b8", PML4)
        + bytes.fromhex("0f22d8")  # mov cr3, eax
        + _word("b9", 0xC0000080)  # mov ecx, IA32_EFER
        + bytes.fromhex("31d2")  # xor edx, edx
        + _word("b8", 0x100)  # mov eax, EFER.LME
        + bytes.fromhex("0f30")  # wrmsr
        + _word("b8", 0x80000011)  # mov eax, PG | ET | PE
        + bytes.fromhex("0f22c0")  # mov cr0, eax
        + _word("ea", LONG)
        + struct.pack("<H", LONG_CODE)  # jmp LONG_CODE:LONG
    )


def _to_ring_3() -> bytes:
    return (
        _word("b8", TASK)
        + bytes.fromhex("0f00d8")  # ltr ax
        + _word("b8", USER_DATA)
        + bytes.fromhex("8ed8 8ec0")  # mov ds, ax; mov es, ax
        + _word("bc", STACK)  # mov esp, STACK
        + bytes((0x6A, USER_DATA))  # push: SS,
        + _word("68", STACK)  # RSP,
        + _word("68", 0x3002)  # RFLAGS with IOPL 3,
        + bytes((0x6A, USER_CODE))  # CS
        + _word("68", USER)  # and RIP
        + bytes.fromhex("48cf")  # iretq
    )


def _user(kind: Kind, exits: int) -> bytes:
    if kind == "memory":
        target = _word("bf", UNCLAIMED_MEMORY)  # mov edi, ...
        loop = bytes.fromhex("8907 ffc9 75fa")  # 1: mov [rdi], eax; dec ecx; jnz 1b
    else:
        target = _word("ba", SCRATCH if kind == "device" else UNCLAIMED_PORT)  # mov edx, ...
        loop = bytes.fromhex("ee ffc9 75fb")  # 1: out dx, al; dec ecx; jnz 1b

    def leave(times: int) -> bytes:
        return target + _word("b9", times) + loop  # mov ecx, times

    return leave(WARM_UP) + say(START) + leave(exits) + say(END) + leave(TAIL) + FINISH


def tail() -> bytes:
    """TAIL writes to a port of nobody's, and the end."""
    return _word("ba", UNCLAIMED_PORT) + _word("b9", TAIL) + bytes.fromhex("ee ffc9 75fb") + FINISH


def say(text: bytes) -> bytes:
    return _word("ba", SERIAL) + b"".join(bytes((0xB0, byte, 0xEE)) for byte in text)  # mov al, byte; out dx, al


FINISH = _word("ba", DEBUG_EXIT) + bytes.fromhex("31c0 ee ebfe")  # xor eax, eax; out dx, al; 1: jmp 1b
