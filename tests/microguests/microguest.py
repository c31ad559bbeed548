"""A machine of a few hundred bytes: guest RAM, a vCPU in a known mode, devices that write down what they see."""

from __future__ import annotations

import importlib
import struct
import threading
from collections.abc import Callable
from typing import Any

from assembler import FINISH_PORT, ORIGIN, TRAP_PORT, assemble

from kvmkit.accel import Exit, ExitReason
from kvmkit.accel.structures import Regs, Segment, Sregs
from kvmkit.bus import AddressSpace, Device
from kvmkit.memory import GuestMemory

RAM = 4 << 20
STACK = 0x7000  # grows down; ORIGIN is above
IDT = 0x1000
TSS = 0x2000
TSS_LIMIT = 0x68 + 0x2000  # with an I/O permission bitmap that allows every port
GDT = 0x4800
KERNEL_STACK = 0x6000  # RSP0, for exceptions in ring 3
IST_STACK = 0x5800
TABLES = 0x20000  # PML4, PDPT, four page directories
DATA = 0x40000  # free for the test
MMIO = 0xD0000000
CODE32, CODE64, DATA_SEGMENT, USER_DATA, USER_CODE = 0x08, 0x10, 0x18, 0x23, 0x2B
TSS_SELECTOR = 0x30
TIMEOUT = 30.0


class Recorder(Device):
    """Writes down each access; `answer(offset, size)` is what a read gives."""

    def __init__(self, answer: Callable[[int, int], int] = lambda offset, size: 0xFFFFFFFFFFFFFFFF) -> None:
        self.writes: list[tuple[int, int, int]] = []
        self.reads: list[tuple[int, int]] = []
        self.answer = answer

    def read(self, offset: int, size: int) -> int:
        self.reads.append((offset, size))
        return self.answer(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        self.writes.append((offset, size, value))


class Finish(Device):
    """Port 0xf4: the guest is through."""

    def __init__(self, guest: MicroGuest) -> None:
        self.guest = guest

    def write(self, offset: int, size: int, value: int) -> None:
        self.guest.finished.set()
        for vcpu in self.guest.vcpus:
            vcpu.kick()


class MicroGuest:
    """`code` in `mode` on `engine`, ready to run. `symbols` says where its labels are."""

    def __init__(self, engine: str, code: str, mode: str, *, cpus: int = 1, cpu: str = "max", rom: bytes = b"") -> None:
        self.memory = GuestMemory(RAM)
        self.rom = self.memory.put_rom(rom) if rom else b""
        self.ports = AddressSpace("ports")
        self.mmio = AddressSpace("memory")
        self.trap = Recorder()
        self.finished = threading.Event()
        self.ports.add(TRAP_PORT, 4, self.trap)
        self.ports.add(FINISH_PORT, 1, Finish(self))
        module: Any = importlib.import_module(f"kvmkit.accel.{engine}")
        self.vm = module.create(self.memory, self.ports, self.mmio, cpu=cpu, cpus=cpus)
        self.vcpus = [self.vm.create_vcpu(index) for index in range(cpus)]
        self.vcpu = self.vcpus[0]
        self.binary, self.symbols = assemble(code, mode)
        self.memory.write(ORIGIN, self.binary)
        getattr(self, f"_{mode}")()
        regs = Regs(rip=ORIGIN, rsp=STACK, rflags=0x3002 if mode == "ring3" else 2)
        self.vcpu.set("regs", bytes(regs))

    # What the guest told

    @property
    def shown(self) -> list[int]:
        """The 32-bit values that `show` (and a default handler) put out."""
        return [value for _, _, value in self.trap.writes]

    def regs(self, index: int = 0) -> Regs:
        return Regs.from_buffer_copy(self.vcpus[index].get("regs"))

    def sregs(self, index: int = 0) -> Sregs:
        return Sregs.from_buffer_copy(self.vcpus[index].get("sregs"))

    # Running

    def run(self, timeout: float = TIMEOUT) -> Exit:
        """Run until the guest is through (`finish`) or its first vCPU can't go on; the timeout is a failure."""
        others = [threading.Thread(target=vcpu.run, daemon=True) for vcpu in self.vcpus[1:]]
        for thread in others:
            thread.start()
        late = threading.Event()

        def stop() -> None:
            late.set()
            self.vcpu.kick()

        timer = threading.Timer(timeout, stop)
        timer.start()
        try:
            result = self.vcpu.run()
        finally:
            timer.cancel()
            for vcpu in self.vcpus[1:]:
                vcpu.kick()
            for thread in others:
                thread.join()
        assert not late.is_set(), f"the guest did not finish; rip {self.regs().rip:#x}, shown {self.shown}"
        return result

    def finish(self, timeout: float = TIMEOUT) -> MicroGuest:
        """Run to the guest's `finish`; any other end is a failure."""
        result = self.run(timeout)
        assert result.reason == ExitReason.KICKED, result
        assert self.finished.is_set()
        return self

    def close(self) -> None:
        for vcpu in self.vcpus:
            vcpu.close()
        self.vm.close()
        self.memory.close()

    # Modes

    def handler(self, vector: int) -> int:
        return self.symbols.get(f"vector_{vector}", self.symbols[f"trap_{vector}"])

    def _real(self) -> None:
        for vector in range(256):
            self.memory.write(4 * vector, struct.pack("<HH", self.handler(vector), 0))
        sregs = self.sregs()
        sregs.cs.base = sregs.cs.selector = 0
        sregs.idt.base, sregs.idt.limit = 0, 0x3FF
        self.vcpu.set("sregs", bytes(sregs))

    def _tables(self, gates: bytes, tss_limit: int) -> None:
        self.memory.write(IDT, gates)
        gdt = [0] * 8
        gdt[CODE32 >> 3] = 0x00CF9B000000FFFF
        gdt[CODE64 >> 3] = 0x00AF9B000000FFFF
        gdt[DATA_SEGMENT >> 3] = 0x00CF93000000FFFF
        gdt[USER_DATA >> 3] = 0x00CFF3000000FFFF
        gdt[USER_CODE >> 3] = 0x00AFFB000000FFFF
        gdt[TSS_SELECTOR >> 3] = 0x00008B0000000000 | tss_limit | (TSS & 0xFFFFFF) << 16
        self.memory.write(GDT, struct.pack("<8Q", *gdt))

    def _segments(self, code: int, data: int, *, long: bool, dpl: int, idt_limit: int) -> Sregs:
        sregs = self.sregs()
        sregs.gdt.base, sregs.gdt.limit = GDT, 63
        sregs.idt.base, sregs.idt.limit = IDT, idt_limit
        shape = {"limit": 0xFFFFFFFF, "present": 1, "dpl": dpl, "s": 1, "g": 1}
        sregs.cs = Segment(selector=code, type=11, db=0 if long else 1, l=1 if long else 0, **shape)
        for name in ("ds", "es", "fs", "gs", "ss"):
            setattr(sregs, name, Segment(selector=data, type=3, db=1, **shape))
        sregs.tr = Segment(base=TSS, limit=TSS_LIMIT if long else 0x67, selector=TSS_SELECTOR, type=11, present=1)
        sregs.ldt = Segment(unusable=1)
        return sregs

    def _protected(self) -> None:
        gates = b"".join(
            struct.pack("<HHHH", h & 0xFFFF, CODE32, 0x8E00, h >> 16) for h in map(self.handler, range(256))
        )
        self._tables(gates, 0x67)
        self.memory.write(TSS + 4, struct.pack("<II", KERNEL_STACK, DATA_SEGMENT))
        sregs = self._segments(CODE32, DATA_SEGMENT, long=False, dpl=0, idt_limit=0x7FF)
        sregs.cr0 = 0x31
        self.vcpu.set("sregs", bytes(sregs))

    def _enter_long(self, code: int, data: int, dpl: int) -> None:
        gates = b"".join(
            struct.pack("<HHBBHII", h & 0xFFFF, CODE64, 0, 0xEE if vector in (3, 4) else 0x8E, h >> 16, 0, 0)
            for vector, h in enumerate(map(self.handler, range(256)))
        )
        self._tables(gates, TSS_LIMIT)
        self.memory.write(TSS + 4, struct.pack("<Q", KERNEL_STACK))
        self.memory.write(TSS + 0x66, struct.pack("<H", 0x68))
        self.memory.write(TSS + TSS_LIMIT, b"\xff")
        self.memory.write(TSS + 0x24, struct.pack("<Q", IST_STACK))
        self.memory.write(TABLES, struct.pack("<Q", TABLES + 0x1007))
        for i in range(4):
            self.memory.write(TABLES + 0x1000 + 8 * i, struct.pack("<Q", TABLES + 0x2007 + 0x1000 * i))
        entries = [(i << 21) | 0x87 for i in range(2048)]  # 4 GiB, itself at itself, for every ring
        self.memory.write(TABLES + 0x2000, struct.pack("<2048Q", *entries))
        sregs = self._segments(code, data, long=True, dpl=dpl, idt_limit=0xFFF)
        sregs.cr3, sregs.cr4, sregs.cr0, sregs.efer = TABLES, 0x620, 0x80010033, 0x500
        self.vcpu.set("sregs", bytes(sregs))

    def _long(self) -> None:
        self._enter_long(CODE64, DATA_SEGMENT, 0)

    def _ring3(self) -> None:
        self._enter_long(USER_CODE, USER_DATA, 3)
