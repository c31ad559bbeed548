"""Every part of the state of a paused Linux on kvm goes out, in again, and comes out the same; then Linux goes on."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from kvmkit.accel.state import VCPU_STATE, VM_STATE
from kvmkit.accel.structures import Pit

from .linux import Linux

CLOCKS = (0x10, 0x40000010, 0x40000020)  # the TSC and two counters of Hyper-V's go on by themselves
SYSENTER = (0x175, 0x176)
"""AMD's have 32 bits: KVM drops the upper half when they are set from outside. Its 64-bit guests have no SYSENTER."""
LAPIC_CURRENT_COUNT = 0x390
COUNT = 20000
SUM = "awk 'BEGIN {{ for (i = 0; i < {count}; i++) x += i / 7; printf \"%.6f\\n\", x }}'"
EXPECTED = f"{sum(i / 7 for i in range(COUNT)):.6f}\n"


@pytest.fixture
def paused(linux: Linux) -> Iterator[Linux]:
    """A guest held in the middle of work: floating point, system calls and a timer; it has to finish it right."""
    linux.sh("rm -f /tmp/sum /tmp/slept")
    linux.background(f"{SUM.format(count=COUNT)} > /tmp/sum.new; mv /tmp/sum.new /tmp/sum")
    linux.background("sleep 0.2; touch /tmp/slept")
    linux.machine.pause()
    yield linux
    linux.machine.resume()
    linux.sh("while [ ! -e /tmp/sum ] || [ ! -e /tmp/slept ]; do sleep 0.05; done")
    assert linux.sh("cat /tmp/sum") == EXPECTED
    assert linux.sh("dmesg | grep -c -e BUG -e Oops -e 'soft lockup' || true") == "0\n"


def msrs(data: bytes) -> dict[int, int]:
    return {index: value for index, _, value in struct.iter_unpack("=IIQ", data)}


def still(name: str, data: bytes) -> object:
    """What of a state may not change by itself while the guest is held."""
    if name == "msrs":
        moving = (*CLOCKS, *SYSENTER)
        return {index: value for index, value in msrs(data).items() if index not in moving}
    if name == "lapic":
        return data[:LAPIC_CURRENT_COUNT] + data[LAPIC_CURRENT_COUNT + 4 :]
    if name == "pit":
        pit = Pit.from_buffer_copy(data)
        for channel in pit.channels:
            channel.count_load_time = 0
        return bytes(pit)
    if name == "clock":
        return None
    return data


@pytest.mark.parametrize("name", VCPU_STATE)
def test_vcpu_state(paused: Linux, name: str) -> None:
    (vcpu,) = paused.machine.board.vcpus
    before = vcpu.get(name)
    vcpu.set(name, before)
    after = vcpu.get(name)
    assert still(name, after) == still(name, before)
    if name == "msrs":
        then, now = msrs(before), msrs(after)
        assert all(now[clock] >= then[clock] for clock in CLOCKS if clock in then)
        assert all(now[index] & 0xFFFFFFFF == then[index] & 0xFFFFFFFF for index in SYSENTER)


@pytest.mark.parametrize("name", VM_STATE)
def test_vm_state(paused: Linux, name: str) -> None:
    vm = paused.machine.board.vm
    before = vm.get(name)
    vm.set(name, before)
    after = vm.get(name)
    assert still(name, after) == still(name, before)
    if name == "clock":
        assert struct.unpack_from("=Q", after) >= struct.unpack_from("=Q", before)


def test_all_of_it_again_and_again(linux: Linux) -> None:
    """Out and in, in the documented order, at twenty points of a computation that has to come out right."""
    linux.sh("rm -f /tmp/sum")
    linux.background(f"{SUM.format(count=5 * COUNT)} > /tmp/sum.new; mv /tmp/sum.new /tmp/sum")
    for _ in range(20):
        linux.machine.pause()
        board = linux.machine.board
        (vcpu,) = board.vcpus
        saved_vm = {name: board.vm.get(name) for name in VM_STATE}
        saved_vcpu = {name: vcpu.get(name) for name in VCPU_STATE}
        for name, data in saved_vm.items():
            board.vm.set(name, data)
        for name, data in saved_vcpu.items():
            vcpu.set(name, data)
        linux.machine.resume()
        linux.sh("sleep 0.02")
    linux.sh("while [ ! -e /tmp/sum ]; do sleep 0.05; done")
    assert linux.sh("cat /tmp/sum") == f"{sum(i / 7 for i in range(5 * COUNT)):.6f}\n"
    assert linux.run("cat", "/proc/version").status == 0
