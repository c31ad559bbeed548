"""Linux finds the bus: by both ways to configuration space, with the windows and interrupts that ACPI tells."""

from __future__ import annotations

import hashlib
import re
import tempfile
from pathlib import Path

import pytest
from tests.cli.calling import call

from kvmkit.errors import HostError
from kvmkit.guest import images
from kvmkit.guest.client import AgentClient
from kvmkit.machine import Machine, MachineSpec
from kvmkit.machine.spec import Disk

pytestmark = pytest.mark.guest
RUN = ("run", "--accel", "tcg", "--transport", "pci", "--")


@pytest.fixture(scope="module", autouse=True)
def image() -> None:
    try:
        images.ensure()
    except HostError as error:
        pytest.skip(f"the guest image can't be built here: {error}")


def test_linux_enumerates_the_bridge() -> None:
    done = call(*RUN, "sh", "-c", "cat /proc/bus/pci/devices; ls /sys/bus/pci/devices; dmesg; cat /proc/iomem")
    assert done.returncode == 0, done.stderr
    assert "0000\t1b360008" in done.stdout
    assert "\n0000:00:00.0\n" in done.stdout
    assert "MMCONFIG at [mem 0xe0000000-0xe00fffff] reserved" in done.stdout
    assert "root bus resource [mem 0xf0000000-0xfebfffff window]" in done.stdout
    assert "root bus resource [mem 0x400000000-0x7ffffffff window]" in done.stdout
    assert "OS now controls [PCIeHotplug PME AER PCIeCapability]" in done.stdout
    assert "ACPI Error" not in done.stdout


def test_a_guest_restarts_and_powers_off_by_its_usual_ports() -> None:
    """The reset port is in the middle of PCI's own."""
    done = call(*RUN, "sh", "-c", "echo b > /proc/sysrq-trigger; sleep 20")
    assert done.returncode == 1
    assert "restarted" in done.stderr


def in_guest(disk: Path, script: str, *, append: str = "", **options: object) -> str:
    """Run a shell script in a machine with a disk and a random number generator; what it says."""
    image = images.ensure()
    disk.write_bytes(CONTENT)
    append = f"console=ttyS0 panic=-1 {image.append} {append}"
    given: dict = {"accel": "tcg", "timeout": 90, "rng": True, "disks": (Disk(path=str(disk)),), **options}
    said: list[str] = []
    spec = MachineSpec(kernel=str(image.kernel), initrd=(str(image.initrd),), append=append, **given)
    with Machine(spec, warn=said.append) as machine, tempfile.TemporaryFile() as out:
        machine.start()
        client = AgentClient(machine.agent_fd, wake=machine.ended_fd)
        client.wait_hello(60)
        assert client.run(["sh", "-ec", LOAD + script], stdout=out.fileno()) == 0
        out.seek(0)
        text = out.read().decode()
    assert said == []
    assert text.startswith(f"20000\n{hashlib.sha256(CONTENT).hexdigest()}")
    changed = disk.read_bytes()
    assert changed[4096:8192] == CONTENT[:4096]
    return text


CONTENT = bytes(range(256)) * 4096
LOAD = """
modprobe -a virtio_pci virtio_mmio virtio_rng virtio_blk
head -c 20000 /dev/hwrng | wc -c
sha256sum /dev/vda
dd if=/dev/vda of=/dev/vda bs=4096 count=1 seek=1 conv=fsync,notrunc 2>/dev/null
cat /proc/interrupts
dmesg
"""


def test_virtio_over_pci_interrupts_by_messages(tmp_path: Path) -> None:
    again = """
        rmmod virtio_rng virtio_blk virtio_pci
        for d in 1 2; do echo 1 > /sys/bus/pci/devices/0000:00:0$d.0/reset; done
        modprobe -a virtio_pci virtio_rng virtio_blk
        head -c 500 /dev/hwrng | wc -c
        sha256sum /dev/vda
    """
    text = in_guest(tmp_path / "disk", again, transport="pci")
    assert len(re.findall(r"PCI-MSI \d+-edge +virtio\d-config", text)) == 2
    counts = re.findall(r": +(\d+) +PCI-MSI \d+-edge +virtio\d-(?:input|req.0)", text)
    assert len(counts) == 2
    assert min(map(int, counts)) > 2
    expected = CONTENT[:4096] * 2 + CONTENT[8192:]
    assert text.endswith(f"\n500\n{hashlib.sha256(expected).hexdigest()}  /dev/vda\n"), "after a reset of both"


def test_virtio_over_pci_interrupts_by_the_pin(tmp_path: Path) -> None:
    text = in_guest(tmp_path / "disk", "", append="pci=nomsi", transport="pci")
    assert "PCI-MSI" not in text
    counts = re.findall(r": +(\d+) +IO-APIC +2\d-fasteoi +virtio\d", text)
    assert len(counts) == 2
    assert min(map(int, counts)) > 2
    assert "nobody cared" not in text


def test_the_same_devices_over_mmio(tmp_path: Path) -> None:
    text = in_guest(tmp_path / "disk", "")
    assert len(re.findall(r"IO-APIC +\d+-edge +virtio\d", text)) == 2
