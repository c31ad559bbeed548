"""An EFI program of some bytes, and a machine with OVMF that starts it, or does not."""

from __future__ import annotations

import os
import select
import shutil
import struct
import subprocess
import time
from pathlib import Path

import pytest

from kvmkit.machine import Machine, MachineSpec

from .conftest import OVMF

CODE = OVMF / "OVMF_CODE_4M.fd"  # with Secure Boot, and without SMM, as kvmkit's machine has it
STARTED = "the program runs"
RESET = bytes.fromhex("66baf90c b006 ee")  # mov dx, 0xcf9; mov al, 6; out dx, al
REFUSED = "No bootable option or device was found"
LONGEST = 100.0  # seconds; it takes three


def program(text: str = STARTED, *, then: bytes = b"") -> bytes:
    """A PE32+ image that writes `text` to the first serial port, runs `then` and halts."""
    line = f"\r\n{text}\r\n".encode()
    after = b"\xb9" + struct.pack("<I", len(line)) + bytes.fromhex("fcf36e") + then + bytes.fromhex("faf4ebfd")
    # mov dx, 0x3f8; lea rsi, [rip + after]; mov ecx, length; cld; rep outsb; then; cli; hlt; jmp to the hlt
    code = bytes.fromhex("66baf803 488d35") + struct.pack("<i", len(after)) + after + line
    relocations = struct.pack("<IIHH", 0x1000, 12, 0, 0)  # of none, or it is said to have been stripped of them
    sections = (
        struct.pack("<8sIIIIIIHHI", b".text", 0x1000, 0x1000, 0x200, 0x200, 0, 0, 0, 0, 0x60000020),
        struct.pack("<8sIIIIIIHHI", b".reloc", 12, 0x2000, 0x1E00, 0x400, 0, 0, 0, 0, 0x42000040),
    )
    optional = struct.pack("<HBBIIIII", 0x20B, 1, 0, 0x200, 0x1E00, 0, 0x1000, 0x1000)
    optional += struct.pack("<QIIHHHHHHIIIIHH", 0, 0x1000, 0x200, 0, 0, 0, 0, 0, 0, 0, 0x4000, 0x200, 0, 10, 0)
    optional += struct.pack("<QQQQII", 0, 0, 0, 0, 0, 16)
    directories = [(0, 0)] * 16
    directories[5] = (0x2000, len(relocations))
    optional += b"".join(struct.pack("<II", *each) for each in directories)
    header = struct.pack("<2s58xI4sHHIIIHH", b"MZ", 64, b"PE\0\0", 0x8664, 2, 0, 0, 0, len(optional), 0x22)
    # As long as a kernel's header, which QEMU reads of whatever it is given as one.
    return (
        (header + optional + b"".join(sections)).ljust(0x200, b"\0")
        + code.ljust(0x200, b"\0")
        + relocations.ljust(0x1E00, b"\0")
    )


def efi_disk(path: Path, files: dict[str, bytes], mib: int = 34) -> Path:
    """A FAT file system with these files, as removable disks are started from."""
    if not shutil.which("mformat"):
        pytest.skip("mformat is not installed (mtools)")
    with path.open("wb") as file:
        file.truncate(mib << 20)
    subprocess.run(["mformat", "-i", path, "-F", "::"], check=True)
    made = set()
    for name, data in files.items():
        for directory in reversed(Path(name).parents):
            if directory.name and directory not in made:
                subprocess.run(["mmd", "-i", path, f"::/{directory}"], check=True)
                made.add(directory)
        subprocess.run(["mcopy", "-i", path, "-", f"::/{name}"], input=data, check=True)
    return path


def sign(data: bytes, keys: Path, path: Path) -> Path:
    """Signed with the db key of these, by sbsign."""
    if shutil.which("sbsign") is None:
        pytest.skip("sbsign is not installed (sbsigntool)")
    path.write_bytes(data)
    command = [
        "sbsign",
        "--key",
        str(keys / "db.key"),
        "--cert",
        str(keys / "db.crt"),
        "--output",
        str(path),
        str(path),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return path


def starts(store: Path, image: Path) -> bool:
    """Whether OVMF, with these variables, starts that program. What it writes to the store is in there then."""
    if not CODE.exists():
        pytest.skip(f"{CODE} is not there: the package ovmf is not installed")
    spec = MachineSpec(
        firmware=str(CODE), nvram=str(store), kernel=str(image), memory=128 << 20, accel="tcg", timeout=LONGEST
    )
    with Machine(spec) as machine:
        machine.start()
        while STARTED not in (said := machine.console.text()) and REFUSED not in said:
            assert machine.wait(0.05) is None, said
        return STARTED in said


def starts_in_qemu(store: Path, image: Path) -> bool:
    """The same on QEMU's machine."""
    qemu = shutil.which("qemu-system-x86_64")
    if qemu is None:
        pytest.skip("qemu-system-x86_64 is not installed")
    command = [
        *(qemu, "-machine", "q35,accel=tcg", "-m", "128", "-nodefaults", "-display", "none", "-serial", "stdio"),
        *("-drive", f"if=pflash,format=raw,readonly=on,file={CODE}", "-drive", f"if=pflash,format=raw,file={store}"),
        *("-kernel", str(image)),
    ]  # fmt: skip
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as peer:
        try:
            assert peer.stdout is not None
            said, end = "", time.monotonic() + LONGEST
            while STARTED not in said and REFUSED not in said:
                assert select.select([peer.stdout], [], [], max(0.0, end - time.monotonic()))[0], said
                more = os.read(peer.stdout.fileno(), 4096)
                assert more, said
                said += more.decode(errors="replace")
            return STARTED in said
        finally:
            peer.kill()
