"""virtio over PCI: a device on the bus, with its registers in one BAR and its interrupts by MSI-X or a pin.

Only modern devices (1.0 and later). Source: virtio 1.2, 4.1.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from kvmkit.bus import AddressSpace, Device
from kvmkit.bus.window import Window
from kvmkit.devices.saved import checked
from kvmkit.errors import BadInput, KvmkitError
from kvmkit.pci import Bar, Function, HostBridge, Identity
from kvmkit.pci.config import Capability
from kvmkit.pci.msix import Msix, MsixState

from .device import DRIVER_OK, FEATURES_OK
from .features import NOTIFICATION_DATA, RING_RESET

if TYPE_CHECKING:
    from .device import VirtioDevice

VENDOR = 0x1AF4
FIRST_DEVICE = 0x1040
REVISION = 1
CLASSES = {
    1: 0x020000,  # network
    2: 0x018000,  # blk: mass storage of no other kind
    3: 0x078000,  # console: communication
    8: 0x010000,  # scsi
    18: 0x098000,  # input
    19: 0x078000,  # vsock
    26: 0x018000,  # fs
    27: 0x058000,  # pmem: memory
}
OTHER_CLASS = 0xFF0000

# Where everything is in BAR 0.
BAR = 0
BAR_BYTES = 0x8000
COMMON, ISR, DEVICE, NOTIFY, TABLE, PENDING = 0x0000, 0x1000, 0x2000, 0x3000, 0x4000, 0x5000
NOTIFY_MULTIPLIER = 4
"""Bytes from one queue's doorbell to the next: each is its own address, whatever value is written."""
COMMON_BYTES = 0x3C
REGION_BYTES = 0x1000

# Types of capabilities, 4.1.4.
COMMON_CFG, NOTIFY_CFG, ISR_CFG, DEVICE_CFG, PCI_CFG = 1, 2, 3, 4, 5
PCI_CFG_BAR, PCI_CFG_OFFSET, PCI_CFG_LENGTH, PCI_CFG_DATA = 4, 8, 12, 16
NO_VECTOR = 0xFFFF
ALL_BITS = 0xFFFFFFFFFFFFFFFF
BY_TRANSPORT = NOTIFICATION_DATA
"""Features that are the doorbells' business: they ring for any value here, so it costs nothing to offer them."""

_FIELDS = (
    ("device_feature_select", 0x00, 4),
    ("device_feature", 0x04, 4),
    ("driver_feature_select", 0x08, 4),
    ("driver_feature", 0x0C, 4),
    ("config_msix_vector", 0x10, 2),
    ("num_queues", 0x12, 2),
    ("device_status", 0x14, 1),
    ("config_generation", 0x15, 1),
    ("queue_select", 0x16, 2),
    ("queue_size", 0x18, 2),
    ("queue_msix_vector", 0x1A, 2),
    ("queue_enable", 0x1C, 2),
    ("queue_notify_off", 0x1E, 2),
    ("queue_desc", 0x20, 8),
    ("queue_driver", 0x28, 8),
    ("queue_device", 0x30, 8),
    ("queue_notify_data", 0x38, 2),
    ("queue_reset", 0x3A, 2),
)
"""struct virtio_pci_common_cfg, 4.1.4.3: name, offset, bytes."""
_FIELD_AT = {at: (name, offset, size) for name, offset, size in _FIELDS for at in range(offset, offset + size)}
_RINGS = {"queue_desc": 1, "queue_driver": 2, "queue_device": 3}

U16 = Annotated[int, Meta(ge=0, le=0xFFFF)]
U64 = Annotated[int, Meta(ge=0)]


class PciState(msgspec.Struct, forbid_unknown_fields=True):
    """What the driver has set in the transport. `queues`: size, descriptors, driver area, device area, vector."""

    config: bytes
    msix: MsixState
    device_page: int
    driver_page: int
    driver_features: U64
    selected: U16
    config_vector: U16
    queues: list[tuple[U16, U64, U64, U64, U16]]


class PciTransport:
    """`device` in a slot of `bridge`. `close` before the VM and the device."""

    def __init__(self, device: VirtioDevice, bridge: HostBridge, slot: int | None = None) -> None:
        self.device = device
        self.bridge = bridge
        self.closed = False
        # vCPUs' threads, and the one that watches pins. The bridge's own, as each calls the other.
        self._lock = bridge.lock
        self._bells: list[tuple[int, int]] = []
        self._line = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        try:
            self.function = self._make(device, bridge)
            self.forget()
            bridge.add(self.function, slot)
        except BaseException:
            os.close(self._line)
            raise

    def _make(self, device: VirtioDevice, bridge: HostBridge) -> Function:
        msix = Msix(bridge.routes, len(device.queues) + 1, bar=BAR, table_offset=TABLE, pending_offset=PENDING)
        self.msix = msix
        self.space = AddressSpace(device.name)
        self.space.add(COMMON, COMMON_BYTES, _Common(self))
        self.space.add(ISR, 4, _Isr(self))
        self.space.add(DEVICE, REGION_BYTES, _DeviceConfig(device))
        self.space.add(NOTIFY, NOTIFY_MULTIPLIER * len(device.queues), _Notify(device))
        self.space.add(TABLE, msix.table_bytes, msix.table)
        self.space.add(PENDING, msix.pending_bytes, msix.pending_bits)
        identity = Identity(
            VENDOR,
            FIRST_DEVICE + device.kind,
            CLASSES.get(device.kind, OTHER_CLASS),
            REVISION,
            VENDOR,
            0x1100,
        )
        bar = Bar(BAR, BAR_BYTES, Window(self.space), wide=True)
        function = Function(device.name, identity, [bar], interrupt_pin=1)
        function.moved = self._moved
        function.on_reset = self._function_reset
        function.add_msix(msix)
        msix.on_enable = self._msix_changed
        self._add_capabilities(function)
        return function

    def _add_capabilities(self, function: Function) -> None:
        def add(kind: int, offset: int, length: int, more: bytes = b"", writable: bytes = b"") -> int:
            body = struct.pack("<BBBBHII", 16 + len(more), kind, BAR, 0, 0, offset, length) + more
            return function.config.add_capability(Capability.VENDOR, body, writable)

        add(COMMON_CFG, COMMON, COMMON_BYTES)
        add(NOTIFY_CFG, NOTIFY, NOTIFY_MULTIPLIER * len(self.device.queues), struct.pack("<I", NOTIFY_MULTIPLIER))
        add(ISR_CFG, ISR, 1)
        if self.device.config:
            add(DEVICE_CFG, DEVICE, len(self.device.config))
        # A window on the BAR for those who can't reach it: which bytes is the guest's to say, and checked at each use.
        writable = bytearray(18)
        writable[PCI_CFG_BAR - 2] = 0xFF
        writable[PCI_CFG_OFFSET - 2 :] = b"\xff" * 12
        self._window = add(PCI_CFG, 0, 0, bytes(4), bytes(writable))
        function.config.watch(
            self._window + PCI_CFG_DATA, 4, before_read=self._window_read, after_write=self._window_written
        )

    def close(self) -> None:
        """Take the doorbells off the bus. No vCPU may be running."""
        if self.closed:
            return
        self.closed = True
        self._silence()
        self.bridge.pins.forget(self._line)
        for queue in self.device.queues:
            queue.wire(queue.doorbell, -1)
        self.device.wire_config(-1)
        os.close(self._line)

    def forget(self) -> None:
        """What the driver had put in the registers."""
        self.device_page = self.driver_page = 0
        self.driver_features = 0
        self.selected = 0
        self.config_vector = NO_VECTOR
        self.chosen = [[queue.most, 0, 0, 0] for queue in self.device.queues]
        self.vectors = [NO_VECTOR] * len(self.device.queues)
        self._wire()

    # Doorbells, where the BAR is.

    def _moved(self, bar: Bar, address: int | None) -> None:
        self._silence()
        if address is None:
            return
        for queue in self.device.queues:
            place = address + NOTIFY + NOTIFY_MULTIPLIER * queue.index
            try:
                self.bridge.vm.ioeventfd(queue.doorbell, place, 0)
            except (KvmkitError, OSError):
                continue  # the engine has no room for more: the write comes to _Notify
            self._bells.append((queue.doorbell, place))

    def _silence(self) -> None:
        for doorbell, place in self._bells:
            self.bridge.vm.remove_ioeventfd(doorbell, place, 0)
        self._bells = []

    # Interrupts.

    def _wire(self) -> None:
        """Have each queue, and the configuration, interrupt as the driver wants it now."""
        device = self.device
        by_message = self.msix.enabled
        for queue, vector in zip(device.queues, self.vectors, strict=True):
            if by_message:
                queue.wire(queue.doorbell, self._vector_fd(vector), 0)
            else:
                queue.wire(queue.doorbell, self._line, device.interrupt_address)
        device.wire_config(self._vector_fd(self.config_vector) if by_message else self._line)

    def _vector_fd(self, vector: int) -> int:
        return self.msix.fds[vector] if vector < self.msix.count else -1

    def _msix_changed(self) -> None:
        self.function.update_line()
        self._wire()
        self._watch_line()

    def _watch_line(self) -> None:
        """The pin needs somebody who raises it, as soon as a driver works without MSI-X."""
        if not self.msix.enabled and self.device.status & DRIVER_OK:
            self.bridge.pins.watch(self._line, self._rang)

    def _rang(self) -> None:
        with self._lock:
            self.function.interrupt(self.device.interrupt_status != 0)

    def read_isr(self) -> int:
        """Reading the ISR status takes it back, and lowers the pin (4.1.4.5)."""
        with self._lock:
            status = self.device.acknowledge(0xFF)
            self.function.interrupt(False)
        return status & 3

    # The common configuration. Any value, any offset: it is the guest's.

    def read_common(self, offset: int, size: int) -> int:
        """A field, or a part of one. What reaches over a field's end reads as zeros there."""
        name, start, width = _FIELD_AT[offset]
        return self._get(name) >> 8 * (offset - start) & ((1 << 8 * min(size, width)) - 1)

    def write_common(self, offset: int, size: int, value: int) -> None:
        """A whole field, or one half of the fields of 64 bits."""
        name, start, width = _FIELD_AT[offset]
        if width == 8 and size == 4 and (offset - start) % 4 == 0:
            shift = 8 * (offset - start)
            value = self._get(name) & ~(0xFFFFFFFF << shift) | (value & 0xFFFFFFFF) << shift
        elif size != width or offset != start:
            return
        with self._lock:
            self._set(name, value & ((1 << 8 * width) - 1))

    def _selected(self) -> bool:
        return self.selected < len(self.device.queues)

    def _get(self, name: str) -> int:
        device = self.device
        match name:
            case "device_feature_select":
                return self.device_page
            case "device_feature":
                offered = device.features | BY_TRANSPORT
                return offered >> 32 * self.device_page & 0xFFFFFFFF if self.device_page < 2 else 0
            case "driver_feature_select":
                return self.driver_page
            case "driver_feature":
                return self.driver_features >> 32 * self.driver_page & 0xFFFFFFFF if self.driver_page < 2 else 0
            case "config_msix_vector":
                return self.config_vector
            case "num_queues":
                return len(device.queues)
            case "device_status":
                return device.status
            case "config_generation":
                return device.generation & 0xFF
            case "queue_select":
                return self.selected
        if not self._selected():
            return NO_VECTOR if name == "queue_msix_vector" else 0
        index = self.selected
        match name:
            case "queue_size":
                return self.chosen[index][0]
            case "queue_msix_vector":
                return self.vectors[index]
            case "queue_enable":
                return int(device.queues[index].ready)
            case "queue_notify_off" | "queue_notify_data":
                return index
            case "queue_desc" | "queue_driver" | "queue_device":
                return self.chosen[index][_RINGS[name]]
        return 0  # queue_reset: when it can be read, it is over

    def _set(self, name: str, value: int) -> None:
        device = self.device
        match name:
            case "device_feature_select":
                self.device_page = value
            case "driver_feature_select":
                self.driver_page = value
            case "driver_feature":
                if self.driver_page < 2:
                    shift = 32 * self.driver_page
                    self.driver_features = self.driver_features & ~(0xFFFFFFFF << shift) | value << shift
                    device.accept(self.driver_features & ~BY_TRANSPORT)
            case "config_msix_vector":
                self.config_vector = self._vector(value)
                self._wire()
            case "device_status":
                self._set_status(value)
            case "queue_select":
                self.selected = value
            case _:
                if self._selected():
                    self._set_queue(name, self.selected, value)

    def _set_status(self, value: int) -> None:
        self.device.write_status(value)
        if value == 0:
            self.forget()
            self.read_isr()
        self._watch_line()

    def _vector(self, value: int) -> int:
        """4.1.5.1.2: a vector that is not there can't be had, and the driver sees that when it reads it back."""
        return value if value < self.msix.count else NO_VECTOR

    def _set_queue(self, name: str, index: int, value: int) -> None:
        device = self.device
        if name == "queue_msix_vector":
            self.vectors[index] = self._vector(value)
            self._wire()
        elif name == "queue_enable":
            if value == 1:
                device.enable_queue(index, *self.chosen[index])
        elif name == "queue_reset":
            if value == 1 and device.status & FEATURES_OK and device.accepted & RING_RESET:
                device.reset_queue(index)
                self.chosen[index] = [device.queues[index].most, 0, 0, 0]
        elif device.queues[index].ready:
            return  # 4.1.4.3.2: not to be changed while it is in use
        elif name == "queue_size":
            self.chosen[index][0] = value
        elif name in _RINGS:
            self.chosen[index][_RINGS[name]] = value

    # The window in configuration space, 4.1.4.9.

    def _window_place(self) -> tuple[int, int] | None:
        """(offset in the BAR, bytes) of what the window shows; None: nothing."""
        config = self.function.config
        offset, length = config.get(self._window + PCI_CFG_OFFSET, 4), config.get(self._window + PCI_CFG_LENGTH, 4)
        good = config.get(self._window + PCI_CFG_BAR, 1) == BAR and length in (1, 2, 4)
        return (offset, length) if good and offset % length == 0 and offset + length <= BAR_BYTES else None

    def _window_read(self, offset: int, size: int) -> None:
        place = self._window_place()
        value = self.space.read(*place) & ((1 << 8 * place[1]) - 1) if place is not None else 0xFFFFFFFF
        self.function.config.put(self._window + PCI_CFG_DATA, 4, value)

    def _window_written(self, offset: int, size: int) -> None:
        place = self._window_place()
        if place is not None:
            value = self.function.config.get(self._window + PCI_CFG_DATA, place[1])
            self.space.write(place[0], place[1], value)

    def _function_reset(self) -> None:
        with self._lock:
            self._set_status(0)

    # Saved state.

    def state(self) -> PciState:
        return PciState(
            config=self.function.config.state(),
            msix=self.msix.state(),
            device_page=self.device_page,
            driver_page=self.driver_page,
            driver_features=self.driver_features,
            selected=self.selected,
            config_vector=self.config_vector,
            queues=[
                (size, descriptors, driver, device, vector)
                for (size, descriptors, driver, device), vector in zip(self.chosen, self.vectors, strict=True)
            ],
        )

    def restore(self, state: object) -> None:
        """Take a saved state, after the device has taken its own and while it is held. Raises BadInput."""
        new = checked(state, PciState, self.device.name)
        if len(new.queues) != len(self.chosen):
            raise BadInput(f"saved state of {self.device.name}: it has another number of queues")
        self.function.config.restore(new.config)
        self.device_page, self.driver_page = new.device_page, new.driver_page
        self.driver_features, self.selected = new.driver_features & ALL_BITS, new.selected
        self.config_vector = self._vector(new.config_vector)
        self.chosen = [[value & ALL_BITS for value in queue[:4]] for queue in new.queues]
        self.vectors = [self._vector(queue[4]) for queue in new.queues]
        self.msix.restore(new.msix)
        self._wire()
        self.bridge.remap()
        self._watch_line()


class _Common(Device):
    def __init__(self, transport: PciTransport) -> None:
        self.transport = transport

    def read(self, offset: int, size: int) -> int:
        return self.transport.read_common(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        self.transport.write_common(offset, size, value)


class _Isr(Device):
    def __init__(self, transport: PciTransport) -> None:
        self.transport = transport

    def read(self, offset: int, size: int) -> int:
        return self.transport.read_isr() if offset == 0 else 0


class _DeviceConfig(Device):
    def __init__(self, device: VirtioDevice) -> None:
        self.device = device

    def read(self, offset: int, size: int) -> int:
        return self.device.read_config(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        self.device.write_config(offset, size, value)


class _Notify(Device):
    """What no doorbell of the engine's has taken."""

    def __init__(self, device: VirtioDevice) -> None:
        self.device = device

    def write(self, offset: int, size: int, value: int) -> None:
        os.eventfd_write(self.device.queues[offset // NOTIFY_MULTIPLIER].doorbell, 1)
