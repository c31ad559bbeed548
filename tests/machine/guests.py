"""Multiboot kernels of a few hundred bytes, assembled by GNU as: serial output, input, and each way to end."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

HEAD = """
.intel_syntax noprefix
.code32
.section .text
.align 4
.long 0x1badb002, 3, -(0x1badb002 + 3)
.macro say port, text
    mov dx, \\port
    mov esi, offset 1f
    call say_
    jmp 2f
1:  .asciz "\\text"
2:
.endm
say_:
    lodsb
    test al, al
    jz 3f
    out dx, al
    jmp say_
3:  ret
.globl _start
_start:
    mov esp, 0x90000
"""

END = {
    "debug exit": "mov al, 0x10; out 0xf4, al; jmp .",
    "power off": "mov dx, 0x604; mov ax, 0x3400; out dx, ax; jmp .",
    "reset": "mov al, 0xfe; out 0x64, al; jmp .",
    "reset port": "mov dx, 0xcf9; mov al, 6; out dx, al; jmp .",
    "triple fault": "mov eax, 0x12345678; lidt nothing; ud2\nnothing: .long 0, 0",
    "spin": "jmp .",
    "sleep": "mov al, 0xff; out 0x21, al; out 0xa1, al; sti; 9: hlt; jmp 9b",
}
"""Instructions that end the machine, or never do."""

FLOOD = "mov dx, 0x3f8; 4: mov ecx, 79; 5: mov al, 'x'; out dx, al; loop 5b; mov al, 10; out dx, al; jmp 4b"
"""A console that never stops, by a driver that never looks at THRE."""

ECHO = """
    mov dx, 0x2fa; mov al, 1; out dx, al
    mov dx, 0x2fc; mov al, 3; out dx, al
4:  mov dx, 0x2fd
5:  in al, dx; test al, 1; jz 5b
    mov dx, 0x2f8; in al, dx; mov bl, al
    mov dx, 0x2fd
6:  in al, dx; test al, 0x20; jz 6b
    mov dx, 0x2f8; mov al, bl; out dx, al
    jmp 4b
"""
"""What comes on the agent's port goes back there, with flow control both ways."""


def build(directory: Path, text: str, name: str = "guest") -> str:
    """The path of a multiboot ELF of HEAD and `text`."""
    if not shutil.which("as") or not shutil.which("ld"):
        pytest.skip("needs GNU as and ld (binutils)")
    source, made, kernel = directory / f"{name}.s", directory / f"{name}.o", directory / name
    source.write_text(HEAD + text + "\n")
    subprocess.run(["as", "--32", "-o", made, source], check=True)
    subprocess.run(
        ["ld", "-m", "elf_i386", "-N", "--no-warn-rwx-segments", "-Ttext", "0x100000", "-o", kernel, made], check=True
    )
    return str(kernel)


def kernel_that_spins(directory: Path) -> str:
    """The path of a multiboot kernel that writes a `!` to the serial port and then goes round for ever."""
    start = 0x100000
    code = bytes([0x66, 0xBA, 0xF8, 0x03, 0xB0, ord("!"), 0xEE, 0xEB, 0xFE])  # mov dx,0x3f8; mov al; out; jmp $
    magic, flags = 0x1BADB002, 1 << 16
    end = start + 32 + len(code)
    header = struct.pack("<8I", magic, flags, -(magic + flags) & 0xFFFFFFFF, start, start, end, end, start + 32)
    path = directory / "spin.elf"
    path.write_bytes(header + code)
    return str(path)
