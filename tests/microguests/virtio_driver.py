"""A virtio driver of some 300 bytes in ring 3 that takes interrupts, for a disk or a card, on both transports.

It looks into the ring only after an interrupt was counted; the handler counts it, takes the device's status back where
the transport has one, and ends it. What to write into which register before is a table in its memory.

Sources: virtio 1.2, 2.7, 4.1, 4.2, 5.1.6 and 5.2.6.
"""

from __future__ import annotations

import struct
from typing import Literal, NamedTuple

from apic import EOI, IOAPIC, LAPIC, SPURIOUS
from microguest import MicroGuest

from kvmkit.bus import pc
from kvmkit.pci import HostBridge
from kvmkit.pci.config import Capability
from kvmkit.virtio import pci
from kvmkit.virtio.device import VirtioDevice
from kvmkit.virtio.mmio import SIZE, MmioTransport
from kvmkit.virtio.pci import PciTransport

Transport = Literal["mmio", "pci"]
Step = tuple[int, int, int]
"""A register to write: bytes, address, value."""

STEPS, DESCRIPTORS, AVAILABLE, USED = 0x40000, 0x48000, 0x49000, 0x4A000
COUNTED, BYTES, SPURIOUS_COUNT = 0x4B000, 0x4B008, 0x4B010
HEADERS, STATUS = 0x4C000, 0x4D000
BUFFERS, STRIDE = 0x80000, 4096
QUEUE = 64
VECTOR = 0x60
BAR = pc.PCI_MMIO
NEXT, WRITE = 1, 2
EVENT_IDX, FLUSH = 1 << 29, 1 << 9
NET_HEADER = 12
NO_INTERRUPT = 1

CODE = """
    mov esi, {steps}
set_up: mov ecx, [rsi]
    mov eax, [rsi + 4]
    mov rdi, [rsi + 8]
    add rsi, 16
    test ecx, ecx
    jz begin
    cmp ecx, 1
    je 1f
    cmp ecx, 2
    je 2f
    mov [rdi], eax
    jmp set_up
1:  mov [rdi], al
    jmp set_up
2:  mov [rdi], ax
    jmp set_up

begin:
    xor r8d, r8d                        # requests begun
    xor r9d, r9d                        # the used index seen
    xor r11d, r11d                      # the available index
    xor r15d, r15d                      # interrupts seen
    mov r10d, {total}
    mov r13d, r10d                      # requests not done
    xor eax, eax
1:  call submit
    add eax, {slots}
    cmp eax, {heads}
    jb 1b
    call publish

wait: pause
    mov eax, [{counted}]
    cmp eax, r15d
    je wait
    mov r15d, eax
    mov word ptr [{available}], {suppress}   # it need not interrupt while we look
again: movzx ecx, word ptr [{used} + 2]
    cmp cx, r9w
    je idle
    mov r12d, r11d
next: mov edx, r9d
    and edx, {mask}
    mov eax, [{used} + 4 + 8 * rdx]
    mov ebx, [{used} + 8 + 8 * rdx]
    add [{bytes}], rbx
    {check}
    inc r9d
    dec r13d
    cmp r8d, r10d
    jae 1f
    call submit
1:  cmp cx, r9w
    jne next
    cmp r12d, r11d
    je again
    call publish
    jmp again
idle:
    test r13d, r13d
    jz through
    mov word ptr [{available}], 0
    mov [{available} + 4 + 2 * {queue}], r9w  # used_event
    lock or dword ptr [rsp], 0
    cmp [{used} + 2], r9w
    je wait
    mov word ptr [{available}], {suppress}
    jmp again
through: finish

submit: mov edx, r11d                   # the request whose first descriptor is eax
    and edx, {mask}
    mov [{available} + 4 + 2 * rdx], ax
    {prepare}
    inc r11d
    inc r8d
    ret

publish: mov [{available} + 2], r11w
    lock or dword ptr [rsp], 0
    mov edi, {notify}
    mov dword ptr [rdi], {index}
    ret

failed: mov ebx, 0xbad
    show ebx
    show eax
    finish

vector_{vector}:
    push rax
    push rdi
    inc dword ptr [{counted}]
    {acknowledge}
    mov edi, {end}
    mov dword ptr [rdi], 0
    pop rdi
    pop rax
    iretq
"""

# A request's sector is its number, in steps of a buffer; its status has to be 0.
PREPARE_BLK = f"""
    mov edx, r8d
    imul edx, edx, {STRIDE // 512}
    mov esi, eax
    shl esi, 4
    mov [{HEADERS} + 8 + rsi], rdx
    mov byte ptr [{STATUS} + rax], 255
"""
CHECK_BLK = f"cmp byte ptr [{STATUS} + rax], 0\njne failed"


class Job(NamedTuple):
    """`queue` of the device; `descriptors` and `headers` of its `depth` requests; `total` of them are made."""

    queue: int
    descriptors: bytes
    slots: int
    total: int
    features: int = 0
    prepare: str = ""
    check: str = ""
    headers: bytes = b""


def blk(write: bool, depth: int, total: int) -> Job:
    """Requests of 4 KiB, one behind the other."""
    parts = []
    for i in range(depth):
        parts.append(struct.pack("<QIHH", HEADERS + 48 * i, 16, NEXT, 3 * i + 1))
        flags = NEXT | (0 if write else WRITE)
        parts.append(struct.pack("<QIHH", BUFFERS + i * STRIDE, STRIDE, flags, 3 * i + 2))
        parts.append(struct.pack("<QIHH", STATUS + 3 * i, 1, WRITE, 0))
    headers = b"".join(struct.pack("<IIQ32x", int(write), 0, 0) for _ in range(depth))
    return Job(0, b"".join(parts), 3, total, FLUSH, PREPARE_BLK, CHECK_BLK, headers)


def net(send: bool, size: int, depth: int, total: int) -> Job:
    """Frames of `size` bytes at most."""
    flags = 0 if send else WRITE
    place = (struct.pack("<QIHH", BUFFERS + i * STRIDE, NET_HEADER + size, flags, 0) for i in range(depth))
    return Job(1 if send else 0, b"".join(place), 1, total)


def code(job: Job, transport: Transport, *, suppress: bool) -> str:
    """`suppress`: it wants no interrupts while it looks."""
    acknowledge = ""
    if transport == "mmio":
        acknowledge = f"mov edi, {pc.VIRTIO_MMIO + 0x60}\nmov eax, [rdi]\nmov [rdi + 4], eax"
    mmio_bell = pc.VIRTIO_MMIO + 0x50
    pci_bell = BAR + pci.NOTIFY + pci.NOTIFY_MULTIPLIER * job.queue
    return CODE.format(
        steps=STEPS,
        total=job.total,
        slots=job.slots,
        heads=len(job.descriptors) // 16,
        counted=COUNTED,
        available=AVAILABLE,
        used=USED,
        bytes=BYTES,
        mask=QUEUE - 1,
        queue=QUEUE,
        suppress=NO_INTERRUPT if suppress else 0,
        check=job.check,
        prepare=job.prepare,
        notify=mmio_bell if transport == "mmio" else pci_bell,
        index=job.queue,
        vector=VECTOR,
        acknowledge=acknowledge,
        end=LAPIC + EOI,
    )


class Driven:
    """`device` and its driver on `guest`, which has that driver's code. Close it before the device."""

    def __init__(self, guest: MicroGuest, device: VirtioDevice, job: Job, transport: Transport, features: int) -> None:
        self.guest, self.device, self.job = guest, device, job
        self.bridge: HostBridge | None = None
        self.transport: MmioTransport | PciTransport
        low = job.features | features
        if transport == "mmio":
            gsi = pc.VIRTIO_MMIO_GSIS[0]
            self.transport = MmioTransport(device, guest.vm, pc.VIRTIO_MMIO, gsi)
            guest.mmio.add(pc.VIRTIO_MMIO, SIZE, self.transport)
            steps = _mmio_steps(job.queue, gsi, low)
        else:
            self.bridge = HostBridge(guest.vm, guest.memory, guest.mmio)
            self.transport = PciTransport(device, self.bridge)
            steps = _pci_steps(job.queue, self.bridge, self.transport.function.slot, low)
        steps = [(4, LAPIC + SPURIOUS, 0x1FF), *steps]
        table = b"".join(struct.pack("<IIQ", size, value, address) for size, address, value in steps)
        guest.memory.write(STEPS, table + bytes(16))
        guest.memory.write(DESCRIPTORS, job.descriptors)
        guest.memory.write(HEADERS, job.headers or b"\0")
        regs = guest.regs()
        regs.rflags |= 0x200
        guest.vcpu.set("regs", bytes(regs))

    def _word(self, address: int, size: int = 4) -> int:
        return int.from_bytes(self.guest.memory.read(address, size), "little")

    @property
    def taken(self) -> int:
        """Interrupts that the guest took."""
        return self._word(COUNTED)

    @property
    def written(self) -> int:
        """Bytes that the device said it wrote."""
        return self._word(BYTES, 8)

    def close(self) -> None:
        if self.bridge is not None:
            self.bridge.stop()
        self.transport.close()
        self.device.close()


def _mmio_steps(queue: int, gsi: int, low: int) -> list[Step]:
    steps = [(IOAPIC, 0x11 + 2 * gsi), (IOAPIC + 0x10, 0), (IOAPIC, 0x10 + 2 * gsi), (IOAPIC + 0x10, VECTOR)]
    registers = [(0x70, 0), (0x70, 1), (0x70, 3), (0x24, 0), (0x20, low), (0x24, 1), (0x20, 1), (0x70, 11)]
    registers += [(0x30, queue), (0x38, QUEUE), (0x80, DESCRIPTORS), (0x84, 0), (0x90, AVAILABLE), (0x94, 0)]
    registers += [(0xA0, USED), (0xA4, 0), (0x44, 1), (0x70, 15)]
    return [(4, address, value) for address, value in steps + [(pc.VIRTIO_MMIO + at, value) for at, value in registers]]


def _pci_steps(queue: int, bridge: HostBridge, slot: int, low: int) -> list[Step]:
    function = bridge.functions[slot]
    config = pc.PCI_ECAM + (slot << 15)
    place = function.config.get(0x34, 1)
    while function.config.get(place, 1) != Capability.MSIX:
        place = function.config.get(place + 1, 1)
    table = BAR + pci.TABLE
    steps = [(4, config + 0x10, BAR), (4, config + 0x14, 0), (2, config + 4, 6), (2, config + place + 2, 0x8000)]
    steps += [(4, table, LAPIC), (4, table + 4, 0), (4, table + 8, VECTOR), (4, table + 12, 0)]
    common = [(1, 0x14, 0), (1, 0x14, 1), (1, 0x14, 3), (4, 8, 0), (4, 0xC, low), (4, 8, 1), (4, 0xC, 1), (1, 0x14, 11)]
    common += [(2, 0x16, queue), (2, 0x18, QUEUE), (2, 0x1A, 0)]
    for at, rings in ((0x20, DESCRIPTORS), (0x28, AVAILABLE), (0x30, USED)):
        common += [(4, at, rings), (4, at + 4, 0)]
    common += [(2, 0x1C, 1), (1, 0x14, 15)]
    return steps + [(size, BAR + pci.COMMON + at, value) for size, at, value in common]
