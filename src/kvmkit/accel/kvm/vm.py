"""One VM of KVM: its memory, interrupt controllers, doorbells and clock.

Source: Documentation/virt/kvm/api.rst, "vm ioctls".
"""

import os
import struct

import cython
from cython.cimports.kvmkit.accel.kvm import uapi
from cython.cimports.kvmkit.accel.kvm.system import KvmSystem
from cython.cimports.kvmkit.accel.kvm.transfer import fetch, refused, store
from cython.cimports.kvmkit.accel.kvm.vcpu import KvmVcpu
from cython.cimports.kvmkit.bus.space import AddressSpace
from cython.cimports.libc.stdlib import calloc, free
from cython.cimports.libc.string import memset

from kvmkit.accel.state import VM_STATE
from kvmkit.errors import BadInput, HostError, KvmkitError

# KVM keeps four pages of its own in the guest's address space, for real mode on older Intel processors. They stand
# below the 16 MiB where firmware can be, as in other VMMs.
IDENTITY_MAP: int = 0xFEFFC000
TSS: int = 0xFEFFD000

FIRST_MSI_GSI: int = 24
MAX_ROUTES: int = 4096  # KVM_MAX_IRQ_ROUTES
XAPIC_CPUS: int = 255  # with 8-bit APIC ids, 255 is everybody

# Not in KVM_GET_MSR_INDEX_LIST, and yet state of a processor: the memory type range registers.
MTRRS: tuple = (*range(0x200, 0x210), 0x250, 0x258, 0x259, *range(0x268, 0x270), 0x2FF)

_CHIPS: dict = {
    "pic_master": uapi.KVM_IRQCHIP_PIC_MASTER,
    "pic_slave": uapi.KVM_IRQCHIP_PIC_SLAVE,
    "ioapic": uapi.KVM_IRQCHIP_IOAPIC,
}


@cython.cclass
class KvmVm:
    """A VM with KVM's own PICs, IOAPIC, LAPICs and PIT. `cpuid` is what every vCPU shows, but for its own numbers."""

    def __cinit__(
        self, system: KvmSystem, memory: object, ports: AddressSpace, mmio: AddressSpace, cpuid: dict, cpus: cython.int
    ):
        self.fd = -1
        limit = system.check_extension(uapi.KVM_CAP_MAX_VCPUS)
        if not system.check_extension(uapi.KVM_CAP_X2APIC_API):
            limit = min(limit, XAPIC_CPUS)
        if cpus < 1 or cpus > limit:
            raise BadInput(f"{cpus} CPUs: this host's KVM takes 1 to {limit}")
        self.engine = "kvm"
        self.cpus = cpus
        self.memory = memory
        self.ports = ports
        self.mmio = mmio
        self.cpuid = cpuid
        self.msr_indices = [*system.msr_indices(), *MTRRS]
        self.msrs_checked = False
        self.mmap_size = system.mmap_size()
        self.fd = system.create_vm()
        # The VM may offer less than the system says, so it is asked itself.
        self.xsave_size = max(uapi.ioctl(self.fd, uapi.KVM_CHECK_EXTENSION, uapi.KVM_CAP_XSAVE2), 4096)
        self._set_up()

    def _set_up(self) -> None:
        identity: cython.ulong = IDENTITY_MAP
        tss: cython.ulong = TSS
        if uapi.ioctl(self.fd, uapi.KVM_SET_IDENTITY_MAP_ADDR, cython.address(identity)) < 0:
            refused("a place for its identity map")
        if uapi.ioctl(self.fd, uapi.KVM_SET_TSS_ADDR, tss) < 0:
            refused("a place for its task state")
        if self.cpus > XAPIC_CPUS:
            wide: uapi.kvm_enable_cap
            memset(cython.address(wide), 0, cython.sizeof(wide))
            wide.cap = uapi.KVM_CAP_X2APIC_API
            wide.args[0] = uapi.KVM_X2APIC_API_USE_32BIT_IDS
            if uapi.ioctl(self.fd, uapi.KVM_ENABLE_CAP, cython.address(wide)) < 0:
                refused("32-bit APIC ids")
        if uapi.ioctl(self.fd, uapi.KVM_CREATE_IRQCHIP, cython.cast(cython.ulong, 0)) < 0:
            refused("an interrupt controller")
        # The dummy speaker has KVM answer port 0x61 too, where a guest waits for PIT channel 2.
        pit: uapi.kvm_pit_config
        memset(cython.address(pit), 0, cython.sizeof(pit))
        pit.flags = uapi.KVM_PIT_SPEAKER_DUMMY
        if uapi.ioctl(self.fd, uapi.KVM_CREATE_PIT2, cython.address(pit)) < 0:
            refused("a PIT")
        for slot, (guest, host, size) in enumerate(self.memory.mapped()):
            self.set_memory(slot, guest, host, size)
        if self.memory.rom is not None:
            self.set_memory(len(self.memory.mapped()), *self.memory.rom, readonly=True)
        self.set_msi_routes([])

    def __dealloc__(self):
        if self.fd >= 0:
            os.close(self.fd)

    def close(self) -> None:
        """Give up this end of the VM; KVM frees it when its vCPUs are closed too."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def set_memory(self, slot: int, guest: int, host: int, size: int, *, readonly: bool = False) -> None:
        """Show `size` bytes at host address `host` to the guest at `guest`; size 0 takes the slot away."""
        region: uapi.kvm_userspace_memory_region
        memset(cython.address(region), 0, cython.sizeof(region))
        region.slot = slot
        region.flags = uapi.KVM_MEM_READONLY if readonly else 0
        region.guest_phys_addr = guest
        region.memory_size = size
        region.userspace_addr = host
        if uapi.ioctl(self.fd, uapi.KVM_SET_USER_MEMORY_REGION, cython.address(region)) < 0:
            refused(f"memory at {guest:#x}+{size:#x}")

    def create_vcpu(self, index: int):
        """vCPU `index`, its APIC id too. Raises BadInput when the VM was made for fewer."""
        if not 0 <= index < self.cpus:
            raise BadInput(f"vCPU {index}: this VM has {self.cpus}")
        fd: cython.int = uapi.ioctl(self.fd, uapi.KVM_CREATE_VCPU, cython.cast(cython.ulong, index))
        if fd < 0:
            refused(f"vCPU {index}")
        return KvmVcpu(self, index, fd, self.mmap_size)

    def keep_msrs(self, indices: list) -> None:
        """Remember which MSRs can be read at all, so that the next vCPU need not try."""
        self.msr_indices = indices
        self.msrs_checked = True

    # Interrupts

    def set_irq(self, gsi: cython.uint, level: cython.uint) -> None:
        """KVM_IRQ_LINE: set line `gsi` to 0 or 1."""
        line: uapi.kvm_irq_level
        memset(cython.address(line), 0, cython.sizeof(line))
        line.irq = gsi
        line.level = 1 if level else 0
        if uapi.ioctl(self.fd, uapi.KVM_IRQ_LINE, cython.address(line)) < 0:
            refused(f"interrupt line {gsi}")

    def signal_msi(self, address: cython.ulonglong, data: cython.uint) -> None:
        """KVM_SIGNAL_MSI: deliver one message. One that no vCPU takes (its APIC is off) is lost, as on a PC."""
        message: uapi.kvm_msi
        memset(cython.address(message), 0, cython.sizeof(message))
        message.address_lo = address & 0xFFFFFFFF
        message.address_hi = address >> 32
        message.data = data
        if uapi.ioctl(self.fd, uapi.KVM_SIGNAL_MSI, cython.address(message)) < 0:
            refused(f"message {data:#x} to {address:#x}")

    def set_msi_routes(self, routes: list) -> None:
        """KVM_SET_GSI_ROUTING: the PC's own lines, and these messages instead of any before.

        Lines 0-15 reach a PIC and the IOAPIC (line 0, the PIT, at pin 2; so line 2 is nobody's), 16-23 the IOAPIC.
        """
        chips = [(0, 0, 0), (0, 2, 2)]
        for line in (1, *range(3, 16)):
            chips += [(line, line >> 3, line & 7), (line, 2, line)]
        chips += [(line, 2, line) for line in range(16, FIRST_MSI_GSI)]
        for route in routes:
            if not FIRST_MSI_GSI <= route.gsi < MAX_ROUTES:
                raise KvmkitError(f"a message can't stand at GSI {route.gsi}: {FIRST_MSI_GSI} to {MAX_ROUTES - 1} can")
        count: cython.int = len(chips) + len(routes)
        if count > MAX_ROUTES:
            raise KvmkitError(f"{len(routes)} message routes: KVM takes {MAX_ROUTES - len(chips)}")
        table: cython.pointer(uapi.kvm_irq_routing) = cython.cast(
            cython.pointer(uapi.kvm_irq_routing),
            calloc(1, cython.sizeof(uapi.kvm_irq_routing) + count * cython.sizeof(uapi.kvm_irq_routing_entry)),
        )
        if table == cython.NULL:
            raise MemoryError
        i: cython.int = 0
        try:
            table.nr = count
            for gsi, chip, pin in chips:
                entry = cython.address(table.entries[i])
                entry.gsi = gsi
                entry.type = uapi.KVM_IRQ_ROUTING_IRQCHIP
                entry.u.irqchip.irqchip = chip
                entry.u.irqchip.pin = pin
                i += 1
            for route in routes:
                entry = cython.address(table.entries[i])
                entry.gsi = route.gsi
                entry.type = uapi.KVM_IRQ_ROUTING_MSI
                entry.u.msi.address_lo = route.address & 0xFFFFFFFF
                entry.u.msi.address_hi = route.address >> 32
                entry.u.msi.data = route.data
                i += 1
            if uapi.ioctl(self.fd, uapi.KVM_SET_GSI_ROUTING, table) < 0:
                refused(f"{len(routes)} message routes")
        finally:
            free(table)

    @cython.ccall
    def irqfd(self, fd: cython.int, gsi: cython.uint, resample: cython.int = -1):
        """KVM_IRQFD: writing eventfd `fd` raises `gsi`; see `kvmkit.accel.VirtualMachine`."""
        self._irqfd(fd, gsi, uapi.KVM_IRQFD_FLAG_RESAMPLE if resample >= 0 else 0, resample)

    def remove_irqfd(self, fd: cython.int, gsi: cython.uint) -> None:
        """Undo `irqfd`."""
        self._irqfd(fd, gsi, uapi.KVM_IRQFD_FLAG_DEASSIGN, -1)

    @cython.cfunc
    def _irqfd(self, fd: cython.int, gsi: cython.uint, flags: cython.uint, resample: cython.int):
        wanted: uapi.kvm_irqfd
        memset(cython.address(wanted), 0, cython.sizeof(wanted))
        wanted.fd = fd
        wanted.gsi = gsi
        wanted.flags = flags
        wanted.resamplefd = resample if resample >= 0 else 0
        if uapi.ioctl(self.fd, uapi.KVM_IRQFD, cython.address(wanted)) < 0:
            refused(f"eventfd {fd} for interrupt {gsi}")

    # Doorbells

    def ioeventfd(self, fd: int, address: int, size: int, *, port: bool = False, match: int | None = None) -> None:
        """KVM_IOEVENTFD: a guest write signals eventfd `fd`; see `kvmkit.accel.VirtualMachine`."""
        self._ioeventfd(fd, address, size, port, match, 0)

    def remove_ioeventfd(
        self, fd: int, address: int, size: int, *, port: bool = False, match: int | None = None
    ) -> None:
        """Undo `ioeventfd`, given the same arguments."""
        self._ioeventfd(fd, address, size, port, match, uapi.KVM_IOEVENTFD_FLAG_DEASSIGN)

    @cython.cfunc
    def _ioeventfd(
        self, fd: cython.int, address: object, size: object, port: cython.bint, match: object, flags: cython.uint
    ):
        bell: uapi.kvm_ioeventfd
        memset(cython.address(bell), 0, cython.sizeof(bell))
        bell.addr = address
        bell.len = size
        bell.fd = fd
        bell.flags = flags
        if port:
            bell.flags |= uapi.KVM_IOEVENTFD_FLAG_PIO
        if match is not None:
            bell.flags |= uapi.KVM_IOEVENTFD_FLAG_DATAMATCH
            bell.datamatch = match
        if uapi.ioctl(self.fd, uapi.KVM_IOEVENTFD, cython.address(bell)) < 0:
            refused(f"a doorbell of {size} bytes at {'port ' if port else ''}{address:#x}")

    # State

    def get(self, name: str) -> bytes:
        """A part of the state: a key of `kvmkit.accel.state.VM_STATE`."""
        size = VM_STATE[name]
        if name in _CHIPS:
            return fetch(self.fd, uapi.KVM_GET_IRQCHIP, struct.pack("=I", _CHIPS[name]).ljust(size, b"\0"), name)
        if name == "pit":
            return fetch(self.fd, uapi.KVM_GET_PIT2, bytes(size), name)
        return fetch(self.fd, uapi.KVM_GET_CLOCK, bytes(size), name)

    def set(self, name: str, data: bytes) -> None:
        """The inverse of `get`."""
        size = VM_STATE[name]
        if len(data) != size:
            raise KvmkitError(f"state {name} has {size} bytes, not {len(data)}")
        if name in _CHIPS:
            store(self.fd, uapi.KVM_SET_IRQCHIP, struct.pack("=I", _CHIPS[name]) + data[4:], f"state {name}")
        elif name == "pit":
            store(self.fd, uapi.KVM_SET_PIT2, data, f"state {name}")
        else:
            # Without flags the guest's clock goes on from here: time that passed while it was saved is not shown.
            store(self.fd, uapi.KVM_SET_CLOCK, data[:8].ljust(size, b"\0"), f"state {name}")

    def memory_written(self, address: int, length: int) -> None:
        """Nothing to do: the processor sees what is in memory."""


def required_missing(system: KvmSystem, required: tuple) -> None:
    """Raise HostError when KVM lacks one of the capabilities `required`."""
    have = system.capabilities()
    missing = [f"KVM_CAP_{name}" for name in required if not have[name]]
    if missing:
        raise HostError(
            f"this host's KVM lacks {', '.join(missing)}: a newer kernel has it; `--accel tcg` works without"
        )
