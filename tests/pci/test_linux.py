"""Linux finds the bus: by both ways to configuration space, with the windows and interrupts that ACPI tells."""

from __future__ import annotations

import re
import tempfile

import pytest
from tests.cli.calling import call

from kvmkit.errors import HostError
from kvmkit.guest import images
from kvmkit.guest.client import AgentClient
from kvmkit.machine import Machine, MachineSpec
from kvmkit.machine.devices import RngSpec

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
    assert "root bus resource [mem 0xf0000000-0xfdffffff window]" in done.stdout
    assert "root bus resource [mem 0x400000000-0x7ffffffff window]" in done.stdout
    assert "OS now controls [PCIeHotplug PME AER PCIeCapability]" in done.stdout
    assert "ACPI Error" not in done.stdout


def test_a_guest_restarts_and_powers_off_by_its_usual_ports() -> None:
    """The reset port is in the middle of PCI's own."""
    done = call(*RUN, "sh", "-c", "echo b > /proc/sysrq-trigger; sleep 20")
    assert done.returncode == 1
    assert "restarted" in done.stderr


def in_guest(script: str, *, append: str = "", **options: object) -> str:
    """Run a shell script in a machine with two random number generators; what it says."""
    image = images.ensure()
    append = f"console=ttyS0 panic=-1 {image.append} {append}"
    given: dict = {"accel": "tcg", "timeout": 90, "devices": (RngSpec(), RngSpec()), **options}
    said: list[str] = []
    spec = MachineSpec(kernel=str(image.kernel), initrd=(str(image.initrd),), append=append, **given)
    with Machine(spec, warn=said.append) as machine, tempfile.TemporaryFile() as out:
        machine.start()
        client = AgentClient(machine.agent_fd, wake=machine.ended_fd)
        client.wait_hello(60)
        assert client.run(["sh", "-ec", script], stdout=out.fileno()) == 0
        out.seek(0)
        text = out.read().decode()
    assert said == []
    return text


LOAD = "modprobe -a virtio_pci virtio_mmio virtio_rng; head -c 20000 /dev/hwrng | wc -c; cat /proc/interrupts; dmesg; "


def test_virtio_over_pci_interrupts_by_messages() -> None:
    again = "rmmod virtio_rng; rmmod virtio_pci; echo 1 > /sys/bus/pci/devices/0000:00:01.0/reset; modprobe virtio_pci;"
    again += (
        "modprobe virtio_rng; echo virtio_rng.0 > /sys/class/misc/hw_random/rng_current; head -c 500 /dev/hwrng|wc -c"
    )
    text = in_guest(LOAD + again, transport="pci")
    assert text.startswith("20000\n")
    assert re.search(r"PCI-MSI \d+-edge +virtio0-config", text)
    counts = re.findall(r": +(\d+) +PCI-MSI \d+-edge +virtio\d-input", text)
    assert len(counts) == 2
    assert max(map(int, counts)) > 10
    assert text.endswith("\n500\n"), "after a reset of the function"


def test_virtio_over_pci_interrupts_by_the_pin() -> None:
    text = in_guest(LOAD, append="pci=nomsi", transport="pci")
    assert text.startswith("20000\n")
    assert "PCI-MSI" not in text
    counts = re.findall(r": +(\d+) +IO-APIC +2\d-fasteoi +virtio\d", text)
    assert len(counts) == 2
    assert max(map(int, counts)) > 10
    assert "nobody cared" not in text


def test_the_same_devices_over_mmio() -> None:
    text = in_guest(LOAD)
    assert text.startswith("20000\n")
    assert len(re.findall(r"IO-APIC +\d+-edge +virtio\d", text)) == 2
