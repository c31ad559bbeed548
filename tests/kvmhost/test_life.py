"""A machine's life on kvm, by the Python API: shutdown, reset, the power button, pause and resume."""

from __future__ import annotations

import struct

import pytest

from kvmkit.accel.state import Regs
from kvmkit.guest.client import AgentGone, Woken
from kvmkit.machine import EndReason, State

from .linux import Linux

EV_KEY, KEY_POWER = 1, 116  # of <linux/input-event-codes.h>


def test_the_guests_poweroff_ends_the_machine() -> None:
    with Linux() as guest:
        guest.background("poweroff")
        with pytest.raises((AgentGone, Woken)):
            guest.run("sleep", "60")
        assert guest.end().reason is EndReason.POWEROFF


def test_the_guests_reset_ends_the_machine() -> None:
    with Linux() as guest:
        guest.background("reboot -f")
        with pytest.raises((AgentGone, Woken)):
            guest.run("sleep", "60")
        assert guest.end().reason is EndReason.RESET


def test_with_reboot_a_reset_starts_it_again() -> None:
    with Linux(reboot=True) as guest:
        first = guest.sh("cat /proc/sys/kernel/random/boot_id")
        guest.client.poweroff(reboot=True)
        guest.again()
        assert guest.sh("cat /proc/sys/kernel/random/boot_id") != first
        guest.machine.reset()  # the button: the guest is not asked
        guest.again()
        assert guest.sh("ls /tmp") == ""
        assert guest.machine.state is State.RUNNING


def test_the_power_button_reaches_the_guest(linux: Linux) -> None:
    linux.sh("modprobe button && modprobe evdev")
    linux.background("head -c 24 /dev/input/event0 > /tmp/pressed")
    before = sci_count(linux)
    linux.sh("while ! pidof head; do sleep 0.1; done")
    linux.machine.press_power_button()
    linux.sh("while [ $(stat -c %s /tmp/pressed) -lt 24 ]; do sleep 0.1; done")
    hexadecimal = linux.sh("od -v -A n -t x1 /tmp/pressed")
    _, _, kind, key, value = struct.unpack("<qqHHi", bytes.fromhex(hexadecimal))
    assert (kind, key, value) == (EV_KEY, KEY_POWER, 1)
    assert sci_count(linux) > before


def sci_count(guest: Linux) -> int:
    """How many ACPI interrupts the guest has had."""
    return int(guest.sh("awk '$NF == \"acpi\" { print $2 }' /proc/interrupts"))


def test_a_running_guest_can_be_held_and_let_go(linux: Linux) -> None:
    """Fifty times: nothing moves while it is held, a counter and the clock go on, and neither goes back."""
    linux.background("n=0; while [ ! -e /tmp/enough ]; do n=$((n + 1)); echo $n > /tmp/n; done")
    linux.sh("while [ ! -s /tmp/n ]; do sleep 0.1; done")
    read = "read n < /tmp/n; read up idle < /proc/uptime; echo $n $up $(date +%s)"
    seen = [linux.sh(read).split()]
    for i in range(50):
        linux.machine.pause()
        assert linux.machine.state is State.PAUSED
        vcpu = linux.machine.board.vcpus[0]
        held = bytes(Regs.from_buffer_copy(vcpu.get("regs")))
        assert vcpu.get("regs") == held
        linux.machine.resume()
        if i % 10 == 9:
            seen.append(linux.sh(read).split())
    linux.sh("touch /tmp/enough")
    for column in range(3):
        values = [float(row[column]) for row in seen]
        assert values == sorted(values)
        assert values[-1] > values[0]
    assert int(seen[-1][0]) > int(seen[0][0]) + 100
