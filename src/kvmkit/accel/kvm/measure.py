"""How fast KVM really is here: a few bytes of ring-0 code, run for some milliseconds."""

from __future__ import annotations

import struct
import threading
import time
from dataclasses import dataclass

from kvmkit.accel.structures import Regs, Segment, Sregs
from kvmkit.bus import AddressSpace
from kvmkit.errors import KvmkitError
from kvmkit.memory import GuestMemory

RUN_SECONDS = 0.02
ATTEMPTS = 5
"""How often ring 0 is timed at most, for the best: what else the host does must not be taken for its KVM."""
INTERPRETED, PLAIN = 10.0, 100.0
"""Millions of instructions a second: below, no KVM that runs them was ever measured; above, there is no doubt."""
PATIENCE_SECONDS = 1.0  # for a kick to work; a KVM that needs longer is not one to run a guest on

RAM = 2 << 20
PML4, PDPT, PD, GDT, CODE = 0x1000, 0x2000, 0x3000, 0x4000, 0x5000

COUNT = bytes.fromhex("48ffc0 ebfb")  # 1: inc rax; jmp 1b
COUNT_INSTRUCTIONS = 2
EXITS = bytes.fromhex("e680 ebfc")  # 1: out 0x80, al; jmp 1b


@dataclass(frozen=True, slots=True)
class Speed:
    """`ring0` in millions of instructions a second, `exit_cost` in microseconds for one port write."""

    ring0: float
    exit_cost: float


def measure() -> Speed:
    """Time KVM. Takes some 50 ms, at most a few seconds. Raises KvmkitError when the guest can't run at all."""
    ring0 = 0.0
    for _attempt in range(ATTEMPTS):
        seconds, counted, _ = _run(COUNT)
        ring0 = max(ring0, counted * COUNT_INSTRUCTIONS / seconds / 1e6)
        if not INTERPRETED < ring0 < PLAIN:
            break
    seconds, _, exits = _run(EXITS)
    if not exits:
        raise KvmkitError("a port write never left the guest")
    return Speed(ring0, seconds / exits * 1e6)


def _run(code: bytes) -> tuple[float, int, int]:
    """Seconds, rax at the end, and port accesses of `code` in long mode."""
    from kvmkit.accel.kvm import create

    memory = GuestMemory(RAM)
    ports = AddressSpace("ports")
    vm = create(memory, ports, AddressSpace("memory"), cpu="max", cpus=1)
    vcpu = vm.create_vcpu(0)
    memory.write(PML4, struct.pack("<Q", PDPT | 3))
    memory.write(PDPT, struct.pack("<Q", PD | 3))
    memory.write(PD, struct.pack("<Q", 0x83))  # the first 2 MiB at themselves
    memory.write(GDT, struct.pack("<4Q", 0, 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF))
    memory.write(CODE, code)
    sregs = Sregs.from_buffer_copy(vcpu.get("sregs"))
    sregs.gdt.base, sregs.gdt.limit = GDT, 31
    sregs.cs = Segment(limit=0xFFFFFFFF, selector=0x10, type=11, present=1, s=1, l=1, g=1)
    for name in ("ds", "es", "fs", "gs", "ss"):
        setattr(sregs, name, Segment(limit=0xFFFFFFFF, selector=0x18, type=3, present=1, db=1, s=1, g=1))
    sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer = 0x80010033, PML4, 0x620, 0x500
    vcpu.set("sregs", bytes(sregs))
    vcpu.set("regs", bytes(Regs(rip=CODE, rflags=2)))

    failure: list[str] = []
    seconds = 0.0

    def body() -> None:
        nonlocal seconds
        start = time.perf_counter()
        try:
            result = vcpu.run()
        except KvmkitError as error:
            failure.append(str(error))
            return
        seconds = time.perf_counter() - start
        if result.reason:
            failure.append(result.detail or result.reason.name)

    # In a thread of its own, and a daemon: should KVM never come back, this process still can end.
    thread = threading.Thread(target=body, name="kvm-measure", daemon=True)
    thread.start()
    thread.join(RUN_SECONDS)
    vcpu.kick()
    thread.join(PATIENCE_SECONDS)
    if thread.is_alive():
        raise KvmkitError(f"a vCPU did not come back within {PATIENCE_SECONDS:g} s of a kick")
    if failure:
        raise KvmkitError(failure[0])
    counted = Regs.from_buffer_copy(vcpu.get("regs")).rax
    vcpu.close()
    vm.close()
    memory.close()
    return seconds, counted, ports.unclaimed
