"""What a guest writes to use the PC's interrupt controllers, as assembly text."""

from __future__ import annotations

LAPIC = 0xFEE00000
IOAPIC = 0xFEC00000

ID, EOI, SPURIOUS, ICR_LOW, ICR_HIGH = 0x20, 0xB0, 0xF0, 0x300, 0x310
TIMER, INITIAL, CURRENT, DIVIDE = 0x320, 0x380, 0x390, 0x3E0
ONE_SHOT, PERIODIC, DEADLINE = 0, 1 << 17, 2 << 17
MASKED, LEVEL = 1 << 16, 1 << 15

MSI_ADDRESS = 0xFEE00000


def lapic(register: int, value: int) -> str:
    return f"mov edi, {LAPIC + register:#x}\nmov dword ptr [edi], {value:#x}\n"


def lapic_on() -> str:
    return lapic(SPURIOUS, 0x1FF)


def end_of_interrupt() -> str:
    return lapic(EOI, 0)


def ioapic(pin: int, low: int, destination: int = 0) -> str:
    """Set a redirection entry: `low` is vector, LEVEL, MASKED, ..."""
    text = f"mov edi, {IOAPIC:#x}\n"
    for register, value in ((0x11 + 2 * pin, destination << 24), (0x10 + 2 * pin, low)):
        text += f"mov dword ptr [edi], {register:#x}\nmov dword ptr [edi + 0x10], {value:#x}\n"
    return text


def pics(master_mask: int = 0xFF, slave_mask: int = 0xFF) -> str:
    """Both PICs at vectors 0x20 and 0x28, with these masks."""
    sequence = (
        (0x20, 0x11), (0xA0, 0x11), (0x21, 0x20), (0xA1, 0x28), (0x21, 4), (0xA1, 2), (0x21, 1), (0xA1, 1),
        (0x21, master_mask), (0xA1, slave_mask),
    )  # fmt: skip
    return "".join(f"mov al, {value:#x}\nout {port:#x}, al\n" for port, value in sequence)


def pit(mode: int, count: int) -> str:
    """Channel 0 in `mode`, counting down from `count` at 1.193182 MHz."""
    return (
        f"mov al, {0x30 | mode << 1:#x}\nout 0x43, al\n"
        f"mov al, {count & 0xFF:#x}\nout 0x40, al\nmov al, {count >> 8:#x}\nout 0x40, al\n"
    )
