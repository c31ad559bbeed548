"""QEMU as the peer: where it is, and how it is started for the same work."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence

PROGRAM = "qemu-system-x86_64"
MISSING = f"{PROGRAM} is not here, so kvmkit is measured alone (Debian: apt-get install qemu-system-x86)"


def version() -> str | None:
    """QEMU's version as it says it; None: it is not installed, or does not start."""
    path = shutil.which(PROGRAM)
    if path is None:
        return None
    try:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    words = said.split("\n", 1)[0].removeprefix("QEMU emulator version ")
    return words.split()[0] if words else None


def linux(accel: str, memory: int, kernel: str, initrd: str, append: str, channel: int) -> list[str]:
    """QEMU's smallest machine with two serial ports, the second on descriptor `channel` (a connected socket)."""
    machine = _common(accel, memory, "microvm,acpi=off,rtc=on,isa-serial=off")
    return [*machine, *_started(kernel, initrd, append, channel)]


def linux_on_pc(memory: int, kernel: str, initrd: str, append: str, channel: int, devices: Sequence[str]) -> list[str]:
    """The same with PCI, on TCG: as a PC, whose clocks Debian's kernel can tell the time by, with `devices`."""
    return [*_common("tcg", memory, "pc"), "-vga", "none", *_started(kernel, initrd, append, channel), *devices]


def multiboot(memory: int, kernel: str) -> list[str]:
    """The same machine with a serial port on standard output and a debug exit port, on KVM."""
    return [
        *_common("kvm", memory, "microvm,acpi=off"),
        *("-kernel", kernel, "-serial", "stdio", "-device", "isa-debug-exit,iobase=0xf4,iosize=4"),
    ]


def _started(kernel: str, initrd: str, append: str, channel: int) -> list[str]:
    return [
        *("-kernel", kernel, "-initrd", initrd, "-append", append),
        *("-chardev", "null,id=c0", "-device", "isa-serial,chardev=c0"),
        *("-chardev", f"socket,id=c1,fd={channel}", "-device", "isa-serial,chardev=c1,iobase=0x2f8,irq=3,index=1"),
    ]


def _common(accel: str, memory: int, machine: str) -> list[str]:
    # With microvm's ACPI tables on, Debian's kernel hung under TCG each time it was tried here (it could not calibrate
    # its TSC; why is not known), so they are off. The CPU model is QEMU's own default.
    shared = ("-nodefaults", "-no-user-config", "-display", "none")
    return [PROGRAM, "-M", machine, "-accel", accel, "-m", f"{memory // 1024}K", *shared]
