"""UEFI starts disks and kernels, remembers its variables, and refuses what Secure Boot forbids: OVMF itself."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from tests.secureboot.efi import RESET, efi_disk, program

from kvmkit.boot import uefi
from kvmkit.errors import BadInput, HostError, KvmkitError
from kvmkit.firmware import OVMF
from kvmkit.guest import images
from kvmkit.guest.apt import Apt
from kvmkit.guest.progress import Silent
from kvmkit.machine import Disk, EndReason, Machine, MachineSpec, ScsiDisk

MIB = 1 << 20
LEAVE = bytes.fromhex("66baf400 31c0 ee")  # mov dx, 0xf4; xor eax, eax; out dx, al: the debug exit
NOTHING_STARTS = "No bootable option or device was found"


@pytest.fixture(autouse=True)
def has_ovmf() -> None:
    try:
        uefi.find(False)
    except HostError as error:
        pytest.skip(str(error))


def speaking(path: Path, text: str, then: bytes = LEAVE) -> Path:
    return efi_disk(path, {"EFI/BOOT/BOOTX64.EFI": program(text, then=then)})


def started(**options: object) -> Machine:
    given: dict = {"firmware": "uefi", "memory": 128 * MIB, "debug_exit": True, "accel": "tcg", "timeout": 90}
    return Machine(MachineSpec(**given | options))


def says(machine: Machine, *texts: str) -> str:
    """Run until the console has one of these; which."""
    machine.start()
    while True:
        end = machine.wait(0.05)
        said = machine.console.text()
        for text in texts:
            if text in said:
                return text
        assert end is None, said


def test_a_disk_starts(tmp_path: Path) -> None:
    disk = speaking(tmp_path / "a.raw", "off a disk")
    with started(disks=(Disk(path=str(disk)),)) as machine:
        machine.start()
        end = machine.wait()
        assert (end.reason, end.status) == (EndReason.DEBUG_EXIT, 1), machine.console.text()
        assert "off a disk\n" in machine.console.text()


def test_disks_are_tried_in_the_order_that_is_asked_for(tmp_path: Path) -> None:
    """Virtio and SCSI disks alike, by the names that fw_cfg gives them."""
    names = ("first", "second", "third")
    paths = [str(speaking(tmp_path / f"{name}.raw", f"the {name} disk")) for name in names]
    plain, units = (Disk(path=paths[0]), Disk(path=paths[1])), (ScsiDisk(path=paths[2]),)
    for order, expected in (((), "first"), ((1,), "second"), ((2, 0), "third")):
        with started(disks=plain, scsi=units, boot_order=order) as machine:
            machine.start()
            assert machine.wait().reason is EndReason.DEBUG_EXIT
            assert f"the {expected} disk" in machine.console.text()


def test_secure_boot_starts_nothing_unsigned(tmp_path: Path) -> None:
    disks = (Disk(path=str(speaking(tmp_path / "a.raw", "off a disk"))),)
    with started(disks=disks, secure_boot=True) as machine:
        assert says(machine, NOTHING_STARTS, "off a disk") == NOTHING_STARTS
        assert "Access Denied" in machine.console.text()


def test_what_it_remembers_is_in_the_file_and_outlives_the_machine(tmp_path: Path) -> None:
    disks = (Disk(path=str(speaking(tmp_path / "a.raw", "off a disk"))),)
    nvram = tmp_path / "vars.fd"
    template = Path(uefi.find(False).variables).read_bytes()
    with started(disks=disks, nvram=str(nvram)) as machine:
        with pytest.raises(BadInput, match="another VM has it"):
            started(nvram=str(nvram))
        machine.start()
        machine.wait()
    first = nvram.read_bytes()
    assert len(first) == len(template)
    assert first != template
    assert "BootOrder".encode("utf-16-le") in first
    with started(disks=disks, nvram=str(nvram)) as machine:
        machine.start()
        assert machine.wait().reason is EndReason.DEBUG_EXIT


def test_a_reset_starts_it_again_with_what_it_remembers(tmp_path: Path) -> None:
    """Without a file its variables are in memory, for as long as the machine lives."""
    disks = (Disk(path=str(speaking(tmp_path / "a.raw", "again", then=RESET))),)
    with started(disks=disks, reboot=True) as machine:
        machine.start()
        while machine.boots < 3:
            assert machine.wait(0.05) is None
        assert machine.console.text().count("again") >= 2


def test_memory_above_4_gib_and_a_kernel(tmp_path: Path) -> None:
    """A kernel's EFI stub is started with its parameters and initrd, and finds all RAM and its devices."""
    image = images.ensure("tiny")
    with started(
        kernel=str(image.kernel), initrd=(str(image.initrd),), append="console=ttyS0 panic=-1", memory=3 << 30, rng=True
    ) as machine:
        said = says(machine, "virtio_rng", "Freeing unused kernel image (initmem)", "end Kernel panic")
        text = machine.console.text()
        assert said != "end Kernel panic", text
        assert "efi: EFI v2" in text
        assert "secureboot: Secure boot disabled" in text
        assert "[mem 0x0000000100000000-0x000000013fffffff] usable" in text
        assert "Command line: console=ttyS0 panic=-1 initrd=initrd" in text
        assert "pci 0000:00:01.0: BAR 0" in text
        assert "can't claim BAR" not in text


def test_with_secure_boot_a_kernel_that_is_handed_over_has_its_initrd(tmp_path: Path) -> None:
    """Debian's is signed by none of these keys: OVMF starts it by a way of its own."""
    image = images.ensure("tiny")
    options = {"append": "console=ttyS0 panic=-1", "memory": 512 * MIB, "secure_boot": True}
    with started(kernel=str(image.kernel), initrd=(str(image.initrd),), **options) as machine:
        said = says(machine, "Run /init as init process", NOTHING_STARTS, "end Kernel panic")
        assert said == "Run /init as init process", machine.console.text()
        assert "secureboot: Secure boot enabled" in machine.console.text()


def test_the_chain_that_distributions_sign(tmp_path: Path) -> None:
    """Microsoft's key has signed shim, shim's has signed GRUB and the kernel: Debian starts with Secure Boot."""
    image = images.ensure("tiny")
    try:
        apt = Apt(tmp_path / "apt", Silent())
        apt.update()
        found = apt.download(["shim-signed", "grub-efi-amd64-signed"])
    except KvmkitError as error:
        pytest.skip(f"shim and GRUB can't be had here: {error}")
    tree = tmp_path / "tree"
    for package in found.values():
        subprocess.run(["dpkg-deb", "-x", package, tree], check=True)
    menu = "serial\nterminal_output serial\nlinux /vmlinuz console=ttyS0 panic=-1\ninitrd /initrd\nboot\n"
    files = {
        "EFI/BOOT/BOOTX64.EFI": (tree / "usr/lib/shim/shimx64.efi.signed").read_bytes(),
        "EFI/BOOT/grubx64.efi": (tree / "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed").read_bytes(),
        "EFI/debian/grub.cfg": menu.encode(),
        "vmlinuz": image.kernel.read_bytes(),
        "initrd": image.initrd.read_bytes(),
    }
    disk = efi_disk(tmp_path / "debian.raw", files, 64)
    with started(disks=(Disk(path=str(disk)),), secure_boot=True, memory=512 * MIB) as machine:
        said = says(machine, "Run /init as init process", NOTHING_STARTS, "end Kernel panic")
        text = machine.console.text()
        assert said == "Run /init as init process", text
        assert "secureboot: Secure boot enabled" in text
        assert "Kernel is locked down from EFI Secure Boot" in text


def test_what_can_not_be_is_refused_in_a_line(tmp_path: Path) -> None:
    code = next(each for each in OVMF if Path(each.code).exists())
    other = tmp_path / "vars.fd"
    other.write_bytes(Path(code.variables).read_bytes()[:-4096])
    alone = tmp_path / "alone.fd"
    alone.write_bytes(Path(code.code).read_bytes())
    plain = tmp_path / "plain"
    plain.write_bytes(bytes(4096))
    smm = Path(code.code).with_suffix(".secboot.fd")
    most = tmp_path / "most.fd"
    most.write_bytes(Path(code.variables).read_bytes().ljust(16 * MIB, b"\xff"))
    large = tmp_path / "large.fd"
    large.write_bytes(Path(code.code).read_bytes().ljust(16 * MIB, b"\xff"))
    link = tmp_path / "link.fd"
    link.symlink_to(code.variables)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as file:
        file.truncate(5 << 30)
    program_ = tmp_path / "program.efi"
    program_.write_bytes(program("never"))
    new = tmp_path / "new.fd"
    cases: list[tuple[dict[str, object], str]] = [
        ({"nvram": str(other)}, "not this firmware's variables"),
        ({"nvram": str(tmp_path / "no" / "vars.fd")}, "No such file"),
        ({"nvram_template": str(other)}, "does not belong to it"),
        ({"nvram_template": str(plain)}, "no UEFI variables"),
        ({"firmware": str(alone)}, "--nvram-template"),
        ({"firmware": "bios", "nvram": str(other)}, "go with UEFI"),
        ({"firmware": str(alone), "secure_boot": True}, "--firmware uefi"),
        ({"firmware": str(most)}, "no code"),
        ({"firmware": str(large), "nvram_template": str(most)}, "does not belong to it"),
        ({"nvram": str(link)}, "symbolic link"),
        ({"nvram": str(new), "memory": 32 * MIB}, "64 MiB"),
        ({"nvram": str(new), "kernel": str(plain)}, "it is none"),
        ({"nvram": str(new), "kernel": str(tmp_path)}, "a directory"),
        ({"nvram": str(new), "kernel": str(tmp_path / "none")}, "No such file"),
        ({"nvram": str(new), "kernel": str(fifo)}, "not a regular file"),
        ({"nvram": str(new), "kernel": str(program_), "initrd": (str(fifo),)}, "not a regular file"),
        ({"nvram": str(new), "kernel": str(program_), "initrd": (str(sparse),)}, "5121 MiB"),
    ]
    cases += [({"firmware": str(smm)}, "system management mode")] if smm.exists() else []
    for options, said in cases:
        with pytest.raises(BadInput, match=said) as refused:
            started(**options)
        assert "\n" not in str(refused.value)
    assert not new.exists()


def test_a_machine_without_its_memory_lets_go_of_its_variables(tmp_path: Path) -> None:
    nvram = str(tmp_path / "vars.fd")
    with pytest.raises(KvmkitError, match="No such file"):
        started(nvram=nvram, memory_path=str(tmp_path / "no" / "where"))
    with started(nvram=nvram):
        pass


def test_an_image_with_its_variables_in_it(tmp_path: Path) -> None:
    """The whole of it in one file, as EDK II builds it."""
    known = next(each for each in OVMF if Path(each.code).exists())
    whole = tmp_path / "OVMF.fd"
    whole.write_bytes(Path(known.variables).read_bytes() + Path(known.code).read_bytes())
    found = uefi.read(str(whole))
    assert found == uefi.read("uefi")
    disks = (Disk(path=str(speaking(tmp_path / "a.raw", "off a disk"))),)
    with started(firmware=str(whole), disks=disks) as machine:
        machine.start()
        assert machine.wait().reason is EndReason.DEBUG_EXIT
