"""The kernel's own interrupt controllers give and take the same state as ours."""

import fcntl
import os
import struct
from collections.abc import Iterator

import pytest

from kvmkit.accel.structures import Pit as PitState
from kvmkit.accel.tcg.chips import Chips

CREATE_VM, CREATE_VCPU, CREATE_IRQCHIP, CREATE_PIT2 = 0xAE01, 0xAE41, 0xAE60, 0x4040AE77
GET_IRQCHIP, SET_IRQCHIP, GET_PIT2, SET_PIT2 = 0xC208AE62, 0x8208AE63, 0x8070AE9F, 0x4070AEA0
GET_LAPIC, SET_LAPIC = 0x8400AE8E, 0x4400AE8F
IRQ_LINE = 0x4008AE61
IRQCHIPS = {"pic_master": 0, "pic_slave": 1, "ioapic": 2}

pytestmark = pytest.mark.kvm


class Kernel:
    """A VM of /dev/kvm with its in-kernel controllers and one vCPU that never runs."""

    def __init__(self) -> None:
        try:
            kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            pytest.skip(f"no usable /dev/kvm: {error.strerror}")
        self.vm = fcntl.ioctl(kvm, CREATE_VM, 0)
        fcntl.ioctl(self.vm, CREATE_IRQCHIP, 0)
        fcntl.ioctl(self.vm, CREATE_PIT2, bytes(64))
        self.vcpu = fcntl.ioctl(self.vm, CREATE_VCPU, 0)
        os.close(kvm)

    def close(self) -> None:
        os.close(self.vcpu)
        os.close(self.vm)

    def get(self, name: str) -> bytes:
        data = bytearray({"lapic": 1024, "pit": 112}.get(name, 520))
        if name in IRQCHIPS:
            struct.pack_into("<I", data, 0, IRQCHIPS[name])
        if name == "lapic":
            fcntl.ioctl(self.vcpu, GET_LAPIC, data)
        else:
            fcntl.ioctl(self.vm, GET_PIT2 if name == "pit" else GET_IRQCHIP, data)
        return bytes(data)

    def set(self, name: str, data: bytes) -> None:
        if name == "lapic":
            fcntl.ioctl(self.vcpu, SET_LAPIC, bytearray(data))
        else:
            fcntl.ioctl(self.vm, SET_PIT2 if name == "pit" else SET_IRQCHIP, bytearray(data))

    def set_irq(self, gsi: int, level: int) -> None:
        fcntl.ioctl(self.vm, IRQ_LINE, struct.pack("<II", gsi, level))


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    vm = Kernel()
    yield vm
    vm.close()


def busy() -> Chips:
    """Chips in the middle of work: everything programmed, interrupts in service and waiting."""
    chips = Chips()
    for port, base, cascade in ((0x20, 0x30, 4), (0xA0, 0x38, 2)):
        chips.port_write(port, 1, 0x11, 0)
        for value in (base, cascade, 1):
            chips.port_write(port + 1, 1, value, 0)
    chips.port_write(0x4D1, 1, 0x0C, 0)
    chips.port_write(0xA1, 1, 0x10, 0)
    for register, value in ((0xF0, 0x1FF), (0xD0, 1 << 24), (0x80, 0x20), (0x350, 0x10700), (0x320, 0x20060)):
        chips.mmio_write(0xFEE00000 + register, 4, value, 0)
    for register, value in ((0x10 + 2 * 11, 0x804B), (0x10 + 2 * 20, 0x18054), (0x10 + 2 * 4, 0x44)):
        chips.mmio_write(0xFEC00000, 4, register, 0)
        chips.mmio_write(0xFEC00010, 4, value, 0)
    for port, value in ((0x43, 0x34), (0x40, 0), (0x40, 0x40), (0x43, 0xB0), (0x42, 1), (0x42, 2), (0x61, 1)):
        chips.port_write(port, 1, value, 0)
    chips.set_irq(11, True)
    chips.lapic.acknowledge()
    chips.set_irq(4, True)
    chips.set_irq(4, False)
    return chips


@pytest.mark.parametrize("name", ["lapic", "ioapic", "pic_master", "pic_slave"])
def test_our_state_comes_back_from_the_kernel(kernel: Kernel, name: str) -> None:
    chips = busy()
    state = chips.get(name, 0)
    kernel.set(name, state)
    other = Chips()
    other.set("pic_slave", chips.get("pic_slave"))  # the master's line 2 is the slave's output
    other.set(name, kernel.get(name), 0)
    assert other.get(name, 0) == state


@pytest.mark.parametrize("name", ["lapic", "ioapic", "pic_master", "pic_slave"])
def test_the_kernels_state_is_ours(kernel: Kernel, name: str) -> None:
    """What the kernel has after a reset, and ours of it, mean the same to the kernel."""
    state = kernel.get(name)
    chips = Chips()
    chips.set(name, state, 0)
    kernel.set(name, chips.get(name, 0))
    assert kernel.get(name) == state


def test_timer_state(kernel: Kernel) -> None:
    state = busy().get("pit", 0)
    kernel.set("pit", state)
    ours, theirs = PitState.from_buffer_copy(state), PitState.from_buffer_copy(kernel.get("pit"))
    for mine, its in zip(ours.channels, theirs.channels, strict=True):
        for name, _ in mine._fields_:
            if name not in ("count_load_time", "count"):
                assert getattr(mine, name) == getattr(its, name), name
    assert [theirs.channels[n].count for n in (0, 2)] == [0x4000, 0x201]
    chips = Chips()
    chips.set("pit", bytes(theirs))
    assert chips.deadline() < 2**63 - 1


def test_the_same_lines_give_the_same_state(kernel: Kernel) -> None:
    """Both start from one programmed state, see the same lines, and end in the same registers."""
    chips = busy()
    for name in ("ioapic", "pic_master", "pic_slave", "lapic"):
        kernel.set(name, chips.get(name, 0))
    for gsi, level in ((4, 1), (4, 0), (10, 1), (20, 1), (12, 1), (12, 0), (11, 0), (3, 1), (6, 1), (6, 0)):
        chips.set_irq(gsi, bool(level))
        kernel.set_irq(gsi, level)
    ours, theirs = chips.get("lapic", 0), kernel.get("lapic")
    assert ours[0x100:0x280] == theirs[0x100:0x280]  # ISR, TMR, IRR
    redirections = slice(8 + 24, None)
    assert chips.get("ioapic")[redirections] == kernel.get("ioapic")[redirections]
    for name in ("pic_master", "pic_slave"):
        mine, its = chips.get(name)[8:24], kernel.get(name)[8:24]
        assert mine == its
