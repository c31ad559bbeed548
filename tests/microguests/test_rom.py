"""A ROM at the end of 4 GiB: read and run, never written; a write goes to the device that stands there."""

from __future__ import annotations

import pytest
from microguest import MicroGuest, Recorder

ROM = bytes.fromhex("0123456789abcdef") * 512  # one page
LAST = (1 << 32) - len(ROM)
CODE = f"""
    mov ebx, {LAST:#x}
    mov eax, 0x11223344
    mov [ebx + 4], eax
    mov ecx, [ebx]
    show ecx
    mov ecx, [ebx + 4]
    show ecx
    finish
"""


@pytest.mark.parametrize("mode", ["protected", "long"])
@pytest.mark.parametrize("answered", [False, True])
def test_a_rom_is_read_and_not_written(engine: str, mode: str, answered: bool) -> None:
    guest = MicroGuest(engine, CODE, mode, rom=ROM)
    try:
        device = Recorder()
        if answered:
            guest.mmio.add(LAST, len(ROM), device)
        assert guest.finish().shown == [0x67452301, 0xEFCDAB89]
        assert device.writes == ([(4, 4, 0x11223344)] if answered else [])
        assert device.reads == []
        assert bytes(guest.rom[:8]) == ROM[:8]
    finally:
        guest.close()


def test_what_its_owner_changes_is_read_at_once(engine: str) -> None:
    guest = MicroGuest(engine, CODE, "long", rom=ROM)
    try:
        guest.rom[:4] = b"\x11\x22\x33\x44"
        assert guest.finish().shown == [0x44332211, 0xEFCDAB89]
    finally:
        guest.close()
