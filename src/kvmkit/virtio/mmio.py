"""virtio-mmio: a page of registers, a doorbell and an edge-triggered interrupt. Source: virtio 1.2, 4.2.

Only version 2, the modern one, whose guests find it by ACPI (LNRO0005) or a device tree.
"""

import os

import cython
from cython.cimports.kvmkit.virtio.device import VirtioDevice
from cython.cimports.libc.stdint import uint32_t, uint64_t

from kvmkit.errors import BadInput
from kvmkit.virtio.device import FEATURES_OK
from kvmkit.virtio.features import RING_RESET

SIZE: int = 0x1000
_MAGIC: int = 0x74726976  # "virt"
_VERSION: int = 2
_VENDOR: int = 0x6B6D766B  # "kvmk"

# Registers, 4.2.2.
MAGIC: int = 0x000
VERSION: int = 0x004
DEVICE_ID: int = 0x008
VENDOR_ID: int = 0x00C
DEVICE_FEATURES: int = 0x010
DEVICE_FEATURES_SEL: int = 0x014
DRIVER_FEATURES: int = 0x020
DRIVER_FEATURES_SEL: int = 0x024
QUEUE_SEL: int = 0x030
QUEUE_NUM_MAX: int = 0x034
QUEUE_NUM: int = 0x038
QUEUE_READY: int = 0x044
QUEUE_NOTIFY: int = 0x050
INTERRUPT_STATUS: int = 0x060
INTERRUPT_ACK: int = 0x064
STATUS: int = 0x070
QUEUE_DESC: int = 0x080
QUEUE_DRIVER: int = 0x090
QUEUE_DEVICE: int = 0x0A0
SHM_SEL: int = 0x0AC
SHM_LEN: int = 0x0B0
SHM_BASE: int = 0x0B8
QUEUE_RESET: int = 0x0C0
CONFIG_GENERATION: int = 0x0FC
CONFIG: int = 0x100


@cython.cclass
class MmioTransport(Device):
    """`device` on the bus at guest physical `base`, interrupting by line `gsi`. `close` before the VM and the device.

    Shared memory regions (4.2.2, SHMSel) are none: the registers say so.
    """

    def __init__(self, device: VirtioDevice, vm, base: int, gsi: int):
        self.device = device
        self.vm = vm
        self.base = base
        self.gsi = gsi
        self.chosen = []
        self.forget()
        self.line = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        vm.irqfd(self.line, gsi)
        device.wire_config(self.line)
        for queue in device.queues:
            queue.wire(queue.doorbell, self.line, device.interrupt_address)
            vm.ioeventfd(queue.doorbell, base + QUEUE_NOTIFY, 4, match=queue.index)

    def close(self) -> None:
        """Take the doorbells off the bus. No vCPU may be running."""
        if self.line < 0:
            return
        for queue in self.device.queues:
            self.vm.remove_ioeventfd(queue.doorbell, self.base + QUEUE_NOTIFY, 4, match=queue.index)
            queue.wire(queue.doorbell, -1)
        self.device.wire_config(-1)
        self.vm.remove_irqfd(self.line, self.gsi)
        os.close(self.line)
        self.line = -1

    def forget(self) -> None:
        """What the driver had put in the registers."""
        self.device_page = self.driver_page = 0
        self.driver_features = 0
        self.selected = 0
        self.chosen = [[queue.most, 0, 0, 0] for queue in self.device.queues]

    # The registers. The value and the offset's alignment are the guest's.

    @cython.ccall
    def read(self, offset: uint64_t, size: cython.uint) -> uint64_t:
        if offset == 0x060 and size == 4:
            return self.device.interrupt_status
        if offset >= 0x100:
            return self.device.read_config(offset - 0x100, size)
        if size != 4 or offset & 3:
            return 0  # 4.2.2.2: drivers use aligned 32-bit accesses only
        return self._register(offset)

    def _register(self, offset: int) -> int:
        device = self.device
        if offset == MAGIC:
            return _MAGIC
        if offset == VERSION:
            return _VERSION
        if offset == DEVICE_ID:
            return device.kind
        if offset == VENDOR_ID:
            return _VENDOR
        if offset == DEVICE_FEATURES:
            return device.features >> 32 * self.device_page & 0xFFFFFFFF if self.device_page < 2 else 0
        if offset == QUEUE_NUM_MAX:
            return device.queues[self.selected].most if self._selected() else 0
        if offset == QUEUE_READY:
            return int(device.queues[self.selected].ready) if self._selected() else 0
        if offset == STATUS:
            return device.status
        if offset in (SHM_LEN, SHM_LEN + 4, SHM_BASE, SHM_BASE + 4):
            return 0xFFFFFFFF
        if offset == CONFIG_GENERATION:
            return device.generation
        return 0

    def _selected(self) -> bool:
        return 0 <= self.selected < len(self.device.queues)

    @cython.ccall
    def write(self, offset: uint64_t, size: cython.uint, value: uint64_t):
        if offset == 0x064 and size == 4:
            self.device.acknowledge(cython.cast(uint32_t, value))
        elif offset >= 0x100:
            self.device.write_config(offset - 0x100, size, value)
        elif size == 4 and not offset & 3:
            self._set_register(offset, value & 0xFFFFFFFF)

    def _set_register(self, offset: int, value: int) -> None:
        device = self.device
        if offset == DEVICE_FEATURES_SEL:
            self.device_page = value
        elif offset == DRIVER_FEATURES_SEL:
            self.driver_page = value
        elif offset == DRIVER_FEATURES:
            if self.driver_page < 2:
                shift = 32 * self.driver_page
                self.driver_features = self.driver_features & ~(0xFFFFFFFF << shift) | value << shift
                device.accept(self.driver_features)
        elif offset == QUEUE_SEL:
            self.selected = value if value < len(device.queues) else -1
        elif offset == QUEUE_NOTIFY:  # one that no doorbell matched: there is no such queue, or notification data
            if value & 0xFFFF < len(device.queues):
                os.eventfd_write(device.queues[value & 0xFFFF].doorbell, 1)
        elif offset == STATUS:
            if value & 0xFF == 0:
                self.forget()
            device.write_status(value & 0xFF)
        elif self._selected():
            self._set_queue(offset, value)

    def _set_queue(self, offset: int, value: int) -> None:
        device, index = self.device, self.selected
        chosen = self.chosen[index]
        if offset == QUEUE_READY:
            if value & 1:
                device.enable_queue(index, *chosen)
            elif device.queues[index].ready:
                device.reset_queue(index)
        elif offset == QUEUE_RESET:
            if value & 1 and device.status & FEATURES_OK and device.accepted & RING_RESET:
                device.reset_queue(index)
                self.chosen[index] = [device.queues[index].most, 0, 0, 0]
        elif device.queues[index].ready:
            return  # 4.2.2.2: not to be changed while it is in use
        elif offset == QUEUE_NUM:
            chosen[0] = value
        elif offset & ~4 in (QUEUE_DESC, QUEUE_DRIVER, QUEUE_DEVICE):
            which = 1 + ((offset & ~4) - QUEUE_DESC) // 0x10
            shift = 32 if offset & 4 else 0
            chosen[which] = chosen[which] & ~(0xFFFFFFFF << shift) | value << shift

    # Saved state.

    def state(self) -> dict:
        return {
            "device_page": self.device_page,
            "driver_page": self.driver_page,
            "driver_features": self.driver_features,
            "selected": self.selected,
            "queues": [list(chosen) for chosen in self.chosen],
        }

    def restore(self, state: dict) -> None:
        """Take what `state` gave. Raises BadInput when it can't be."""
        from kvmkit.devices.saved import checked
        from kvmkit.virtio.saved import MmioState

        saved = checked(state, MmioState, self.device.name)
        if len(saved.queues) != len(self.chosen) or saved.selected >= len(self.chosen):
            raise BadInput(f"saved state of {self.device.name}: it has another number of queues")
        self.device_page, self.driver_page = saved.device_page, saved.driver_page
        self.driver_features, self.selected = saved.driver_features, saved.selected
        self.chosen = [list(chosen) for chosen in saved.queues]
