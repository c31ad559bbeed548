"""Linux finds the bus: by both ways to configuration space, with the windows and interrupts that ACPI tells."""

from __future__ import annotations

import pytest
from tests.cli.calling import call

pytestmark = pytest.mark.guest
RUN = ("run", "--accel", "tcg", "--transport", "pci", "--")


@pytest.fixture(scope="module", autouse=True)
def image() -> None:
    from kvmkit.errors import HostError
    from kvmkit.guest import images

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
