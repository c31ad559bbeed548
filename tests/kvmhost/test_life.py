"""A machine's life on kvm, by the Python API: shutdown, reset, the power button, pause and resume."""

from __future__ import annotations

import struct

import pytest

from kvmkit.guest.client import AgentGone, Woken
from kvmkit.machine import EndReason

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
