"""What holds for each device: a driver may reset it and negotiate anew at any moment, and it says what it needs."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from kvmkit.block.file import DiskFile
from kvmkit.memory import GuestMemory
from kvmkit.memory.backing import allocate
from kvmkit.testing import MmioDriver, PciDriver
from kvmkit.vhost_user import virtiofsd
from kvmkit.vhost_user.daemon import find
from kvmkit.virtio.device import DRIVER_OK, NEEDS_RESET, VirtioDevice

MIB = 1 << 20
MARK = b"nobody writes here after a reset " * 15
RUN = [sys.executable, "-m", "kvmkit", "run", "--accel", "tcg", "--timeout", "100"]


class Parts:
    """What devices are made of, ended with the test."""

    def __init__(self, memory: GuestMemory, directory: Path, stack: ExitStack) -> None:
        self.memory, self.directory, self.stack = memory, directory, stack

    def file(self, name: str, size: int = 2 * MIB) -> str:
        path = self.directory / name
        path.write_bytes(bytes(size))
        return str(path)


def blk(parts: Parts) -> VirtioDevice:
    from kvmkit.virtio.blk import Blk

    return Blk(parts.memory, DiskFile(parts.file("disk")), queues=2)


def scsi(parts: Parts) -> VirtioDevice:
    from kvmkit.machine.scsi import ScsiAdapter
    from kvmkit.machine.spec import ScsiDisk

    return ScsiAdapter(parts.memory, (ScsiDisk(path=parts.file("disk"), iops=1000),), None, 2).device


def net(parts: Parts) -> VirtioDevice:
    from kvmkit.net.stream import StreamBackend
    from kvmkit.virtio.net import Net

    ours, peer = socket.socketpair()
    parts.stack.callback(peer.close)
    frame = b"\xff" * 6 + bytes.fromhex("525400000002") + b"\x88\xb5" + bytes(100)
    threading.Thread(target=chatter, args=(peer, len(frame).to_bytes(4, "big") + frame), daemon=True).start()
    return Net(parts.memory, StreamBackend(ours), bytes.fromhex("525400000001"))


def chatter(peer: socket.socket, data: bytes) -> None:
    try:
        while True:
            peer.sendall(data)
            time.sleep(0.0002)
    except OSError:
        pass


def console(parts: Parts) -> VirtioDevice:
    from kvmkit.virtio.console import Console

    return Console(parts.memory, [("hvc0", str(parts.directory / "port"))])


def balloon(parts: Parts) -> VirtioDevice:
    from kvmkit.virtio.balloon import Balloon

    device = Balloon(parts.memory)
    device.set_target(parts.memory.size // 2)
    return device


def rng(parts: Parts) -> VirtioDevice:
    from kvmkit.virtio.rng import Rng

    return Rng(parts.memory)


def vsock(parts: Parts) -> VirtioDevice:
    from kvmkit.virtio.vsock import Vsock

    return Vsock(parts.memory, 3, str(parts.directory / "vsock"))


def input_(parts: Parts) -> VirtioDevice:
    from kvmkit.virtio.input import Input, press

    device = Input(parts.memory, "keyboard")
    device.inject(press("a"))
    return device


def pmem(parts: Parts) -> VirtioDevice:
    from kvmkit.virtio.pmem import Pmem, open_file

    return Pmem(parts.memory, open_file(parts.file("pmem", 2 * MIB), readonly=False), name="pmem")


def fs(parts: Parts) -> VirtioDevice:
    from kvmkit.virtio.vhost_user.device import VhostUserDevice
    from kvmkit.virtio.vhost_user.kinds import fs

    if not find("virtiofsd", virtiofsd.PLACES):
        pytest.skip("virtiofsd is not installed")
    daemon = virtiofsd.make(str(parts.directory), readonly=False)
    return VhostUserDevice(parts.memory, fs("tag"), "volume", daemon=daemon)


def served(parts: Parts) -> VirtioDevice:
    from kvmkit.virtio.blk import Blk
    from kvmkit.virtio.vhost_user.device import VhostUserDevice
    from kvmkit.virtio.vhost_user.kinds import blk
    from kvmkit.virtio.vhost_user.server import Server

    disk, path = parts.file("disk"), str(parts.directory / "s")
    server = Server(path, lambda memory, log: Blk(memory, DiskFile(disk), queues=2, log=log), print)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    parts.stack.callback(server.close)
    parts.stack.callback(thread.join)
    parts.stack.callback(server.stop)
    return VhostUserDevice(parts.memory, blk(2), path)


DEVICES: list[Callable[[Parts], VirtioDevice]] = [
    blk, scsi, net, console, balloon, rng, vsock, input_, pmem, fs, served
]  # fmt: skip


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[Parts]:
    memory = allocate(8 * MIB, shared=True, behind=2 * MIB)  # for persistent memory
    with ExitStack() as stack:
        yield Parts(memory, tmp_path, stack)
    memory.close()


CASES = [
    pytest.param(make, driver, packed, id=f"{make.__name__.strip('_')}-{bus}-{'packed' if packed else 'split'}")
    for make in DEVICES
    for driver, bus in ((MmioDriver, "mmio"), (PciDriver, "pci"))
    for packed in (False, True)
    if make is not fs or (packed and driver is PciDriver)  # what virtiofsd does not answer, a reset waits 5 s for
]


@pytest.mark.parametrize(("make", "transport", "packed"), CASES)
def test_reset_and_negotiated_anew_at_any_moment(
    parts: Parts, make: Callable[[Parts], VirtioDevice], transport: type[MmioDriver], packed: bool
) -> None:
    device = make(parts)
    memory = parts.memory
    offered = device.features & ((1 << 24) - 1)
    with transport(device, memory, packed=packed, features=0) as driver:
        least = driver.wanted
        for turn in range(1 if make is fs else 16):
            driver.wanted = least | (offered if turn % 4 else 0)
            driver.start()
            places = []
            for index, queue in enumerate(driver.queues):
                for i in range(3):
                    at = driver.buffers + 0x4000 * index + 0x1000 * i
                    memory.write(at, bytes([turn % 16]) + bytes(63))
                    memory.write(at + 0x100, bytes(512))
                    queue.add([(at, 64, False), (at + 0x100, 512, True)])
                    places.append(at + 0x100)
                driver.ring(index)
            if turn % 3:
                time.sleep(0.0005 * (turn % 3))
            driver.reset()
            for at in places:
                memory.write(at, MARK)
            time.sleep(0.0005)
            assert all(memory.read(at, len(MARK)) == MARK for at in places)
        driver.wanted = least
        driver.start()
        assert device.status & DRIVER_OK
        assert not device.status & NEEDS_RESET
        device.hold()
        device.release()
    assert "CONFIG_" in device.driver


@pytest.mark.guest
@pytest.mark.skipif(not find("virtiofsd", virtiofsd.PLACES), reason="virtiofsd is not installed")
def test_each_device_without_its_driver_is_told_of(tmp_path: Path) -> None:
    from kvmkit.guest.images import ensure

    image = ensure()
    for name in ("disk", "scsi", "pmem", "served"):
        (tmp_path / name).write_bytes(bytes(2 * MIB))
    socket_ = str(tmp_path / "s")
    serve = [sys.executable, "-m", "kvmkit", "serve-device", "blk", str(tmp_path / "served"), "--socket", socket_]
    server = subprocess.Popen(serve, stderr=subprocess.PIPE)
    assert server.stderr is not None
    server.stderr.readline()
    options = ["--disk", str(tmp_path / "disk"), "--scsi", str(tmp_path / "scsi"), "--pmem", str(tmp_path / "pmem")]
    options += ["--net", "switch=undriven", "--input", "keyboard", "--rng", "--console-port", f"hvc0={tmp_path}/port"]
    options += ["--balloon", "--vsock", "--volume", f"{tmp_path}:/work", "--vhost-user", f"blk={socket_}"]
    options += ["--kernel", str(image.kernel), "--append", "console=ttyS0 panic=-1", "--transport", "pci"]
    done = subprocess.run([*RUN, *options], capture_output=True, text=True)
    server.terminate()
    server.wait()
    server.stderr.close()
    lines = [line for line in done.stderr.splitlines() if "the guest has not taken" in line]
    for what, option in (
        ("disk ", "CONFIG_VIRTIO_BLK"),
        ("scsi ", "CONFIG_SCSI_VIRTIO"),
        ("pmem ", "CONFIG_VIRTIO_PMEM"),
        ("net ", "CONFIG_VIRTIO_NET"),
        ("keyboard ", "CONFIG_VIRTIO_INPUT"),
        ("rng ", "CONFIG_HW_RANDOM_VIRTIO"),
        ("console ", "CONFIG_VIRTIO_CONSOLE"),
        ("balloon ", "CONFIG_VIRTIO_BALLOON"),
        ("vsock ", "CONFIG_VIRTIO_VSOCKETS"),
        ("volume ", "CONFIG_VIRTIO_FS"),
        ("vhost-user blk ", "CONFIG_VIRTIO_BLK"),
    ):
        found = [line for line in lines if f"taken {what}" in line]
        assert len(found) == 1, (what, done.stderr)
        assert option in found[0]
        assert "CONFIG_VIRTIO_PCI" in found[0]


UNBOUND = """
exec 3>&1 > /dev/null 2>&1  # what the loops say is nobody's
of() {  # the block device of that driver: a new one gets a new name while somebody has the old one open
    for b in /sys/block/*; do
        p=$(readlink -f $b); v=${p#*/virtio}; p=$(readlink -f /sys/bus/virtio/devices/virtio${v%%/*}/driver)
        test ${p##*/} = $1 -a -b /dev/${b##*/} && echo /dev/${b##*/} && return
    done
    return 1
}
use() {
    while true; do
        d=$(of $1) && dd if=$d of=/dev/null bs=4k count=32 && dd if=/ram/x of=$d bs=16k conv=fsync; sleep 0.01
    done
}
mkdir -p /data /ram
for i in $(seq 50); do of virtio_blk && of virtio_scsi && of virtio_pmem && break; sleep 0.1; done
head -c 100000 /dev/urandom > /ram/x; head -c 65536 /dev/zero | tr '\\0' d > /ram/d
use virtio_blk & use virtio_scsi & use virtio_pmem &
while true; do dd if=/dev/hwrng of=/dev/null bs=64 count=16; sleep 0.01; done &
while true; do ip link set eth0 up; ip addr add 169.254.9.9/16 dev eth0; ping -c 1 -W 1 169.254.1.1; sleep 0.05; done &
while true; do cat /work/file; echo x > /work/other; sleep 0.01; done &
while true; do echo some words > /dev/hvc0; sleep 0.01; done &
while true; do cat /dev/input/event0; sleep 0.05; done &
sleep 0.3
for round in 1 2; do
    for device in /sys/bus/virtio/devices/virtio*; do
        name=${device##*/}; driver=$(readlink -f $device/driver)
        case ${driver##*/} in *vsock*) continue;; virtiofs) umount -l /work;; esac  # the agent's own
        echo $name > $driver/unbind
        echo $name > $driver/bind
        test $round = 2 -a -e $device/driver && echo ${driver##*/} >&3
    done
    sleep 0.2
done
kill $(jobs -p); sleep 0.3; killall dd
for i in $(seq 50); do of virtio_blk && of virtio_scsi && of virtio_pmem && break; sleep 0.1; done
for driver in virtio_blk virtio_scsi virtio_pmem; do dd if=/ram/d of=$(of $driver) bs=4k conv=fsync; done
dd if=/dev/hwrng bs=64 count=1 | wc -c >&3
mount -t virtiofs kvmkit0 /data; cat /data/file >&3
test -e /sys/class/net/eth0 -a -c /dev/hvc0 -a -c /dev/input/event0 && echo all there >&3
"""


@pytest.mark.guest
@pytest.mark.skipif(not find("virtiofsd", virtiofsd.PLACES), reason="virtiofsd is not installed")
def test_linux_unbinds_and_binds_each_driver_while_it_works(tmp_path: Path) -> None:
    for name in ("disk", "scsi", "pmem"):
        (tmp_path / name).write_bytes(bytes(4 * MIB))
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "file").write_text("here\n")
    options = ["--disk", str(tmp_path / "disk"), "--scsi", str(tmp_path / "scsi"), "--pmem", str(tmp_path / "pmem")]
    options += ["--net", "switch=unbound", "--input", "keyboard", "--rng", "--console-port", f"hvc0={tmp_path}/port"]
    options += ["--balloon", "--volume", f"{volume}:/work", "--transport", "pci"]
    done = subprocess.run(
        [*RUN, "tiny", *options, "--", "sh", "-c", UNBOUND], capture_output=True, text=True, timeout=110
    )
    out = done.stdout.split("\n")
    drivers = {"blk", "scsi", "net", "pmem", "input", "rng", "console", "balloon"}
    assert set(out[:-4]) == {f"virtio_{driver}" for driver in drivers} | {"virtiofs"}, done
    assert out[-4:] == ["64", "here", "all there", ""], done
    for name in ("disk", "scsi", "pmem"):
        assert (tmp_path / name).read_bytes()[:65536] == b"d" * 65536, name
    assert "has to unmount" not in done.stderr
