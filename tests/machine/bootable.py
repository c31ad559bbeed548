"""Disks with a boot loader: boot sectors assembled here, and one with SYSLINUX and a kernel."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

SECTOR = 512
SECTORS = 2048
TOOLS = ("syslinux", "mcopy", "mkfs.vfat")

START = """
.intel_syntax noprefix
.code16
.globl _start
_start:
    xor ax, ax; mov ds, ax; mov es, ax; mov ss, ax; mov sp, 0x7c00
    cld; sti
    jmp main
say:
    lodsb
    test al, al
    jz 1f
    mov ah, 0x0e; mov bx, 7
    int 0x10
    jmp say
1:  ret
rest:
    mov cx, 3               # the BIOS writes what is on its screen by and by, at its timer's ticks
1:  hlt; loop 1b
    ret
second:                     # read the second sector to 0x8000
    mov ax, 0x0201; mov cx, 2; mov dh, 0; mov bx, 0x8000
    int 0x13
    jnc 1f
    mov si, offset failed
    call say
    jmp leave
1:  ret
leave:
    call rest
    mov al, 5
    out 0xf4, al
    jmp .
failed: .asciz "can't read\\r\\n"
main:
"""


def boot_sector(directory: Path, text: str, second: bytes = b"", name: str = "disk.raw") -> Path:
    """A disk whose boot sector runs `text`, 16-bit code that may call `say` (DS:SI), `second`, `rest`, `leave`."""
    if shutil.which("as") is None or shutil.which("ld") is None:
        pytest.skip("as and ld are not installed (binutils)")
    source, linked, image = directory / "boot.s", directory / "boot.o", directory / name
    source.write_text(START + text + "\n")
    subprocess.run(["as", "--32", "-o", str(linked), str(source)], check=True)
    flat = directory / "boot.bin"
    command = ["ld", "-m", "elf_i386", "-Ttext=0x7c00", "--oformat=binary", "-o", str(flat), str(linked)]
    subprocess.run(command, check=True)
    code = flat.read_bytes()
    assert len(code) <= SECTOR - 2
    data = code.ljust(SECTOR - 2, b"\0") + struct.pack("<H", 0xAA55) + second.ljust(SECTOR, b"\0")
    image.write_bytes(data.ljust(SECTORS * SECTOR, b"\0"))
    return image


def boot_disc(directory: Path, text: str) -> Path:
    """A CD-ROM that runs `text` as its boot image, not as a floppy's. Source: El Torito 1.0; ECMA-119, 8."""
    code = boot_sector(directory, text, name="image.raw").read_bytes()[: SECTOR * 4]
    volume = b"\1CD001\1".ljust(2048, b"\0")
    boot = (b"\0CD001\1" + b"EL TORITO SPECIFICATION".ljust(64, b"\0") + struct.pack("<I", 19)).ljust(2048, b"\0")
    end = b"\xffCD001\1".ljust(2048, b"\0")
    check = bytearray(struct.pack("<BBH24sHBB", 1, 0, 0, b"", 0, 0x55, 0xAA))
    struct.pack_into("<H", check, 28, -sum(struct.unpack("<16H", check)) & 0xFFFF)
    entry = struct.pack("<BBHBBHI20x", 0x88, 0, 0x7C0, 0, 0, 4, 20)
    disc = directory / "disc.iso"
    catalog = (bytes(check) + entry).ljust(2048, b"\0")
    disc.write_bytes(bytes(16 * 2048) + volume + boot + end + catalog + code.ljust(2048 * 20, b"\0"))
    return disc


def linux_disk(directory: Path, kernel: Path, initrd: Path, append: str, mebibytes: int = 64) -> Path:
    """A disk with SYSLINUX, which starts that kernel. Skips where a tool is missing."""
    for tool in TOOLS:
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed (syslinux, mtools, dosfstools)")
    image, config = directory / "linux.raw", directory / "syslinux.cfg"
    with image.open("wb") as file:
        file.truncate(mebibytes << 20)
    subprocess.run(["mkfs.vfat", "-n", "SYSTEM", str(image)], check=True, capture_output=True)
    subprocess.run(["syslinux", "--install", str(image)], check=True)
    config.write_text(
        f"SERIAL 0 115200\nDEFAULT linux\nLABEL linux\n KERNEL vmlinuz\n INITRD initrd\n APPEND {append}\n"
    )
    for path, called in ((kernel, "vmlinuz"), (initrd, "initrd"), (config, "syslinux.cfg")):
        subprocess.run(["mcopy", "-i", str(image), str(path), f"::{called}"], check=True)
    return image
