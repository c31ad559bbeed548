"""A disk starts by its own boot loader: SeaBIOS finds it, reads it and hands over to it."""

from __future__ import annotations

from pathlib import Path

import pytest
from bootable import boot_disc, boot_sector

from kvmkit.boot import seabios
from kvmkit.errors import BadInput, HostError
from kvmkit.machine import Disk, EndReason, Machine, MachineSpec, ScsiDisk

MIB = 1 << 20
SPEAK = 'mov si, offset text; call say; call second; mov si, 0x8000; call say; jmp leave\ntext: .asciz "{}\\r\\n"'


@pytest.fixture(autouse=True)
def has_seabios() -> str:
    try:
        return seabios.find()
    except HostError as error:
        pytest.skip(str(error))


def started(**options: object) -> Machine:
    given: dict = {"firmware": "bios", "memory": 64 * MIB, "debug_exit": True, "timeout": 90, **options}
    return Machine(MachineSpec(**given))


def test_a_boot_sector_runs_and_reads_its_disk(engine: str, tmp_path: Path) -> None:
    check_boot_sector(tmp_path, engine, "pci")


def test_a_boot_sector_on_virtio_mmio(tmp_path: Path) -> None:
    check_boot_sector(tmp_path, "tcg", "mmio")


def check_boot_sector(tmp_path: Path, engine: str, transport: str) -> None:
    disk = boot_sector(tmp_path, SPEAK.format("a boot sector"), b"and its second sector\r\n")
    with started(disks=(Disk(path=str(disk)),), accel=engine, transport=transport) as machine:
        machine.start()
        end = machine.wait()
        assert (end.reason, end.status) == (EndReason.DEBUG_EXIT, 11), machine.debug.text()
        assert "a boot sector\nand its second sector\n" in machine.console.text()
        told = machine.debug.text()
        assert "e820 map has" in told
        assert "ACPI: parse DSDT" in told
        assert "internal error" not in told


def test_disks_are_tried_in_the_order_that_is_asked_for(tmp_path: Path) -> None:
    names = ("first", "second", "third")
    disks = [boot_sector(tmp_path, SPEAK.format(f"the {name} disk"), name=f"{name}.raw") for name in names]
    plain, units = (Disk(path=str(disks[0])), Disk(path=str(disks[1]))), (ScsiDisk(path=str(disks[2])),)
    for order, expected in (((), "first"), ((1,), "second"), ((2, 0), "third")):
        with started(disks=plain, scsi=units, boot_order=order, accel="tcg", transport="pci") as machine:
            machine.start()
            assert machine.wait().reason is EndReason.DEBUG_EXIT
            assert f"the {expected} disk" in machine.console.text()


def test_a_disk_without_a_boot_loader_is_told_on_the_console(tmp_path: Path) -> None:
    empty = tmp_path / "empty.raw"
    empty.write_bytes(bytes(MIB))
    with started(disks=(Disk(path=str(empty)),), accel="tcg") as machine:
        machine.start()
        while machine.wait(0.1) is None and "No bootable device." not in machine.console.text():
            pass
        assert "Boot failed: not a bootable disk" in machine.console.text()


def test_a_cdrom_starts_when_no_disk_does(tmp_path: Path) -> None:
    empty = tmp_path / "empty.raw"
    empty.write_bytes(bytes(MIB))
    disc = boot_disc(tmp_path, 'mov si, offset text; call say; jmp leave\ntext: .asciz "off a disc\\r\\n"')
    disks, units = (Disk(path=str(empty)),), (ScsiDisk(path=str(disc), cdrom=True),)
    with started(disks=disks, scsi=units, accel="tcg", transport="pci") as machine:
        machine.start()
        assert machine.wait().reason is EndReason.DEBUG_EXIT, machine.debug.text()
        assert "off a disc\n" in machine.console.text()


def test_a_reset_starts_it_again_and_the_bios_is_whole(tmp_path: Path) -> None:
    """The first start writes a mark on the disk, ruins the BIOS's copy in RAM and resets by the keyboard controller."""
    text = """
        call second
        cmp byte ptr [0x8000], 'y'
        je again
        mov byte ptr [0x8000], 'y'
        mov ax, 0x0301; mov cx, 2; mov dh, 0; mov bx, 0x8000
        int 0x13
        mov ax, 0xf000; mov es, ax; xor di, di; mov cx, 0x8000; mov ax, 0x9090
        cli; rep stosw
        mov al, 0xfe; out 0x64, al; jmp .
    again:
        mov si, offset text; call say; jmp leave
        text: .asciz "once more\\r\\n"
    """
    disk = boot_sector(tmp_path, text, b"n")
    with started(disks=(Disk(path=str(disk)),), accel="tcg", reboot=True) as machine:
        machine.start()
        assert machine.wait().reason is EndReason.DEBUG_EXIT
        assert "once more\n" in machine.console.text()
        assert machine.boots == 2


def test_memory_above_4_gib_is_told(tmp_path: Path) -> None:
    """INT 15h, AX=E820 as a boot loader asks it: its entries are printed as bytes on the debug port."""
    text = """
        xor ebx, ebx
    next:
        mov eax, 0xe820; mov edx, 0x534d4150; mov ecx, 20; mov di, 0x8000
        int 0x15
        jc done
        mov si, 0x8000; mov cx, 20; mov dx, 0xe9
        rep outsb
        test ebx, ebx
        jnz next
    done: jmp leave
    """
    disk = boot_sector(tmp_path, text)
    with started(disks=(Disk(path=str(disk)),), accel="tcg", memory=5 << 30) as machine:
        machine.start()
        assert machine.wait().reason is EndReason.DEBUG_EXIT
        assert (4 << 30).to_bytes(8, "little") + (2 << 30).to_bytes(8, "little") + b"\1\0\0\0" in machine.debug.tail()


def test_what_is_no_bios_is_refused_in_a_line(tmp_path: Path) -> None:
    disk = (Disk(path=str(boot_sector(tmp_path, SPEAK.format("x")))),)
    small, uefi, wild = tmp_path / "small", tmp_path / "uefi", tmp_path / "wild"
    small.write_bytes(b"x")
    uefi.write_bytes(bytes(2 * MIB))
    wild.write_bytes(bytes(128 << 10))
    no = tmp_path / "no"
    for path, said in ((small, "64 to 256 KiB"), (uefi, "no UEFI image"), (wild, "reset vector"), (no, "No such")):
        with pytest.raises(BadInput, match=said) as refused:
            started(firmware=str(path), disks=disk)
        assert "\n" not in str(refused.value)
    with pytest.raises(BadInput, match="needs 4 MiB"):
        started(disks=disk, memory=2 * MIB)
    for options, said in (
        ({"kernel": "/k"}, "name one of them"),
        ({"firmware": ""}, "name one of them"),
        ({"append": "quiet"}, "--append"),
        ({"boot_order": (1,)}, "boot order"),
    ):
        with pytest.raises(BadInput, match=said):
            started(disks=disk, **options)
