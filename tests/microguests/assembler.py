"""Assembly text to machine code and symbols, by GNU as, ld, objcopy and nm (binutils comes with gcc)."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

KEPT = Path(__file__).parent / ".assembled"

ORIGIN = 0x8000

# What a stub of the default handlers reports goes to this port, 32 bits at a time.
TRAP_PORT = 0xE0
FINISH_PORT = 0xF4
WITH_ERROR_CODE = {8, 10, 11, 12, 13, 14, 17, 21, 29, 30}

MACROS = f"""
.intel_syntax noprefix
.macro finish
    out {FINISH_PORT:#x}, al
    777: jmp 777b
.endm
.macro show reg
    mov eax, \\reg
    out {TRAP_PORT:#x}, eax
.endm
"""

# The default handlers tell vector, error code (0 where the processor pushes none), instruction pointer, CS and
# flags, then CR2, and end the guest. A test's own handler for vector N is a label vector_N.
COMMON = {
    "real": """
trap:
    mov bp, sp
    movzx ebx, word ptr [bp]
    show ebx
    xor ebx, ebx
    show ebx
    movzx ebx, word ptr [bp + 2]
    show ebx
    movzx ebx, word ptr [bp + 4]
    show ebx
    movzx ebx, word ptr [bp + 6]
    show ebx
    finish
""",
    "protected": """
trap:
    show [esp]
    show [esp + 4]
    show [esp + 8]
    show [esp + 12]
    show [esp + 16]
    mov ebx, cr2
    show ebx
    finish
""",
    "long": """
trap:
    show [rsp]
    show [rsp + 8]
    show [rsp + 16]
    show [rsp + 24]
    show [rsp + 32]
    mov rbx, cr2
    show ebx
    finish
""",
}
COMMON["ring3"] = COMMON["long"]

BITS = {"real": 16, "protected": 32, "long": 64, "ring3": 64}


def _stubs(mode: str) -> str:
    lines = []
    for vector in range(256):
        lines.append(f"trap_{vector}:")
        if vector not in WITH_ERROR_CODE and mode != "real":
            lines.append("push 0")
        lines.append(f"push {vector}\njmp trap")
    return "\n".join(lines) + COMMON[mode]


@functools.cache
def assemble(code: str, mode: str) -> tuple[bytes, dict[str, int]]:
    """The bytes of `code` and of the default handlers, to stand at ORIGIN, and where their labels are.

    What was assembled once is kept beside the tests, so that they also run where there is no assembler.
    """
    bits = f".code{BITS[mode]}"
    text = f"{MACROS}\n{bits}\n.globl _start\n_start:\n{code}\n{bits}\n.balign 16\n{_stubs(mode)}\n"
    kept = KEPT / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"
    if not kept.exists():
        KEPT.mkdir(exist_ok=True)
        temporary = kept.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(_build(text)))
        temporary.replace(kept)
    binary, symbols = json.loads(kept.read_text())
    return bytes.fromhex(binary), symbols


def _build(text: str) -> tuple[str, dict[str, int]]:
    for name in ("as", "ld", "objcopy", "nm"):
        if shutil.which(name) is None:
            pytest.skip(f"{name} is missing, and this code was not assembled before: apt-get install binutils")
    with tempfile.TemporaryDirectory(prefix="kvmkit-as-") as name:
        directory = Path(name)
        (directory / "a.s").write_text(text)

        def tool(*command: str) -> str:
            done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{command[0]}: {done.stderr}"
            return done.stdout

        tool("as", "--64", "-o", "a.o", "a.s")
        tool("ld", "-N", f"-Ttext={ORIGIN:#x}", "-o", "a.elf", "a.o")
        tool("objcopy", "-O", "binary", "-j", ".text", "a.elf", "a.bin")
        symbols = {}
        for line in tool("nm", "a.elf").splitlines():
            address, _, label = line.split()
            symbols[label] = int(address, 16)
        return (directory / "a.bin").read_bytes().hex(), symbols
