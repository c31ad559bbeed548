"""State in and out: what is set is what the guest sees, what the guest did is what is read, and both survive a trip."""

from __future__ import annotations

import struct
import threading
import time

import pytest
from apic import MSI_ADDRESS, end_of_interrupt, lapic_on, pics, pit
from microguest import DATA, MicroGuest

from kvmkit.accel.state import VCPU_STATE, VM_STATE
from kvmkit.accel.structures import Pit, Regs
from kvmkit.errors import KvmkitError

CLOCKS = (0x10, 0x40000010, 0x40000020)  # the TSC and two counters of Hyper-V's go on by themselves
RUNNING = pics(0xFE) + pit(2, 50000) + lapic_on() + "mov ebx, 1\nshow ebx\nfinish"


def msrs(data: bytes) -> dict[int, int]:
    return {index: value for index, _, value in struct.iter_unpack("=IIQ", data)}


@pytest.mark.parametrize("name", VCPU_STATE)
def test_vcpu_state_survives_a_round_trip(guest, name):
    machine = guest(RUNNING, "long").finish()
    vcpu = machine.vcpu
    saved = vcpu.get(name)
    vcpu.set(name, saved)
    again = vcpu.get(name)
    if name == "msrs":
        before, after = msrs(saved), msrs(again)
        for clock in CLOCKS:
            assert after.pop(clock, 0) >= before.pop(clock, 0)
        assert after == before
    else:
        assert again == saved


@pytest.mark.parametrize("name", VCPU_STATE)
def test_vcpu_state_has_its_size(guest, name):
    data = guest("finish", "long").vcpu.get(name)
    if VCPU_STATE[name] is not None:
        assert len(data) == VCPU_STATE[name]
    elif name == "xsave":
        assert len(data) >= 4096
    else:
        assert len(data) % 16 == 0


@pytest.mark.parametrize("name", VM_STATE)
def test_vm_state_survives_a_round_trip(guest, name):
    machine = guest(RUNNING, "long").finish()
    saved = machine.vm.get(name)
    assert len(saved) == VM_STATE[name]
    machine.vm.set(name, saved)
    again = machine.vm.get(name)
    if name == "pit":
        before, after = Pit.from_buffer_copy(saved), Pit.from_buffer_copy(again)
        for channel in (*before.channels, *after.channels):
            channel.count_load_time = 0  # the host's clock when it was loaded
        assert bytes(before) == bytes(after)
    elif name == "clock":
        elapsed = struct.unpack_from("=Q", again)[0] - struct.unpack_from("=Q", saved)[0]
        assert 0 <= elapsed < 20_000_000_000
    else:
        assert again == saved


def move(source: MicroGuest, target: MicroGuest) -> None:
    target.memory.write(0, source.memory.read(0, source.memory.size))
    for name in VM_STATE:
        target.vm.set(name, source.vm.get(name))
    for name in VCPU_STATE:
        target.vcpu.set(name, source.vcpu.get(name))


@pytest.mark.parametrize("mode", ["real", "protected", "long", "ring3"])
def test_a_guest_goes_on_in_another_vm(guest, mode):
    """Stopped in a loop at any point, it counts on as if nothing had been."""
    address = "[bx]" if mode == "real" else "[ebx]"
    code = f"""
    mov ebx, 0x7800
    mov ecx, 100000
    1: inc dword ptr {address}
    dec ecx
    jnz 1b
    mov ebx, dword ptr {address}
    show ebx
    finish
    """
    first = guest(code, mode)
    timer = threading.Timer(0.005, first.vcpu.kick)
    timer.start()
    first.vcpu.run()
    timer.join()
    second = guest(code, mode)
    move(first, second)
    if first.finished.is_set():
        assert first.shown == [100000]
    else:
        assert second.finish().shown == [100000]


def test_a_pending_interrupt_travels(guest):
    code = (
        f"{pics()}{lapic_on()}cli\nmov dx, 0x620\nin al, dx\nsti\nnop\n1: jmp 1b\n"
        f"vector_85:\nmov ebx, 85\nshow ebx\n{end_of_interrupt()}finish"
    )
    from microguest import Recorder

    first, second = guest(code, "long"), guest(code, "long")

    def answer(offset, size):
        first.vm.signal_msi(MSI_ADDRESS, 0x55)
        first.vcpu.kick()
        return 0

    first.ports.add(0x620, 1, Recorder(answer))
    first.vcpu.run()
    assert first.shown == []
    move(first, second)
    assert second.finish().shown == [85]


def test_a_running_timer_travels(guest):
    from apic import INITIAL, PERIODIC, TIMER, lapic

    code = (
        f"xor ebx, ebx\n{pics()}{lapic_on()}{lapic(TIMER, 0x40 | PERIODIC)}{lapic(INITIAL, 200_000)}"
        "mov dx, 0x620\nin al, dx\n1: cli\ncmp ebx, 2\njae 2f\nsti\nhlt\njmp 1b\n2: show ebx\nfinish\n"
        f"vector_64:\ninc ebx\n{end_of_interrupt()}iretq"
    )
    from microguest import Recorder

    first, second = guest(code, "long"), guest(code, "long")

    def answer(offset, size):
        first.vcpu.kick()
        return 0

    first.ports.add(0x620, 1, Recorder(answer))
    first.vcpu.run()
    move(first, second)
    assert second.finish().shown[0] >= 2


def test_registers_set_are_seen(guest):
    machine = guest("show ebx\nfinish", "ring3")
    regs = machine.regs()
    regs.rbx = 0x12345678
    machine.vcpu.set("regs", bytes(regs))
    assert machine.finish().shown == [0x12345678]


def test_msr_set_is_seen(guest):
    machine = guest("mov ecx, 0xc0000082\nrdmsr\nmov ebx, eax\nshow ebx\nfinish", "long")
    machine.vcpu.set("msrs", struct.pack("=IIQ", 0xC0000082, 0, 0x55667788))
    assert machine.finish().shown == [0x55667788]


def test_msr_written_is_read(guest):
    machine = guest("mov ecx, 0xc0000082\nmov eax, 0x1234\nxor edx, edx\nwrmsr\nfinish", "long").finish()
    assert msrs(machine.vcpu.get("msrs"))[0xC0000082] == 0x1234


def test_sse_registers_are_in_xsave(guest):
    code = f"mov eax, {DATA}\nmovups xmm3, [rax]\nfinish"
    machine = guest(code, "ring3")
    machine.memory.write(DATA, bytes(range(16)))
    machine.finish()
    assert machine.vcpu.get("xsave")[160 + 3 * 16 :][:16] == bytes(range(16))  # XMM registers: Intel SDM 1, 13.4.1


def test_unknown_state_is_a_key_error(guest):
    machine = guest("finish", "long")
    for thing in (machine.vcpu, machine.vm):
        with pytest.raises(KeyError):
            thing.get("nothing")
        with pytest.raises(KeyError):
            thing.set("nothing", b"")


@pytest.mark.parametrize("name", [name for name in VCPU_STATE if name != "xsave"])
def test_state_of_a_wrong_size_is_refused(guest, name):
    vcpu = guest("finish", "long").vcpu
    with pytest.raises(KvmkitError):
        vcpu.set(name, vcpu.get(name) + b"\0")


@pytest.mark.parametrize("name", VM_STATE)
def test_vm_state_of_a_wrong_size_is_refused(guest, name):
    vm = guest("finish", "long").vm
    with pytest.raises(KvmkitError):
        vm.set(name, vm.get(name)[:-1])


def test_state_of_a_running_vcpu_is_refused_and_does_not_hang(guest):
    machine = guest("1: jmp 1b", "ring3")
    thread = threading.Thread(target=machine.vcpu.run)
    thread.start()
    time.sleep(0.05)
    try:
        with pytest.raises(KvmkitError):
            machine.vcpu.get("regs")
        with pytest.raises(KvmkitError):
            machine.vcpu.close()
    finally:
        machine.vcpu.kick()
        thread.join()
    assert Regs.from_buffer_copy(machine.vcpu.get("regs")).rip == machine.symbols["_start"]


def test_translate_follows_the_guests_tables(guest):
    machine = guest("finish", "long")
    assert machine.vcpu.translate(0x8123) == 0x8123
    assert machine.vcpu.translate(0x123456789000) is None
    machine.memory.write(0x20000 + 8 * 3, machine.memory.read(0x20000, 8))  # entry 3 of the PML4 as entry 0
    assert machine.vcpu.translate((3 << 39) + 0x8123) == 0x8123


def test_exits_are_counted_by_reason(guest):
    machine = guest("out 0x80, al\nout 0x80, al\nmov ebx, 0xd0000000\nmov [rbx], eax\nfinish", "ring3").finish()
    counted = machine.vcpu.exits()
    assert counted["port"] == 3
    assert counted["memory"] == 1
