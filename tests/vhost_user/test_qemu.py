"""Our devices served to QEMU, with Linux in it as their driver."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kvmkit.guest.cpio import CpioWriter
from kvmkit.guest.images import ensure

pytestmark = [
    pytest.mark.guest,
    pytest.mark.skipif(not shutil.which("qemu-system-x86_64"), reason="QEMU is not installed (qemu-system-x86)"),
]
MIB = 1 << 20
OURS = b"\x02\0\0\0\0\x01"


@contextmanager
def served(path: Path, *words: str) -> Iterator[None]:
    """`kvmkit serve-device WORDS` at `path`, ended with Ctrl-C."""
    command = [sys.executable, "-m", "kvmkit", "serve-device", *words, "--socket", str(path)]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    try:
        assert "is served at" in server.stderr.readline()
        yield
        server.send_signal(signal.SIGINT)
        assert server.wait(20) == 0
        assert not path.exists()
    finally:
        server.kill()
        server.wait()
        server.stderr.close()


def boot(directory: Path, path: Path, front: list[str], script: str) -> list[str]:
    """The lines that Linux in QEMU prints, whose device `front` is at `path`."""
    image = ensure()
    begin = """#!/bin/sh
        mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev; exec > /dev/ttyS0 2>&1
        modprobe virtio_pci
    """
    initrd, console = directory / "initrd", directory / "console"
    with initrd.open("wb") as file:
        file.write(image.initrd.read_bytes())
        more = CpioWriter(file)
        more.file("run-test", f"{begin}\n{script}\necho done; reboot -f\n".encode(), 0o755)
        more.finish()
    arguments = ["-m", "512M", "-object", "memory-backend-memfd,id=ram,size=512M,share=on"]
    arguments += ["-machine", "q35,memory-backend=ram,accel=tcg", "-nodefaults", "-display", "none", "-no-reboot"]
    arguments += ["-chardev", f"socket,id=c,path={path}", *front, "-serial", f"file:{console}"]
    arguments += ["-kernel", str(image.kernel), "-initrd", str(initrd)]
    arguments += ["-append", f"{image.append} console=ttyS0 rdinit=/run-test panic=-1"]
    qemu = subprocess.run(["qemu-system-x86_64", *arguments], capture_output=True, text=True, timeout=100)
    lines = console.read_text().splitlines()
    assert "done" in lines, "\n".join(lines[-30:]) + qemu.stderr
    return lines


@pytest.mark.parametrize("ring", ["split", "packed"])
def test_a_disk_for_qemu(tmp_path: Path, ring: str) -> None:
    disk, path = tmp_path / "disk.raw", tmp_path / "s"
    data = os.urandom(4 * MIB)
    disk.write_bytes(data)
    script = """
        modprobe virtio_blk
        echo packed=$(cut -c 35 /sys/bus/virtio/devices/virtio0/features)  # bit 34
        sha256sum < /dev/vda; dd if=/dev/vda of=/dev/vda bs=64k count=16 seek=32 conv=fsync
    """
    packed = "on" if ring == "packed" else "off"
    with served(path, "blk", f"{disk},queues=2"):
        lines = boot(tmp_path, path, ["-device", f"vhost-user-blk-pci,chardev=c,num-queues=2,packed={packed}"], script)
    assert ("packed=1" if ring == "packed" else "packed=0") in lines
    assert f"{hashlib.sha256(data).hexdigest()}  -" in lines
    assert disk.read_bytes() == data[: 2 * MIB] + data[:MIB] + data[3 * MIB :]


def test_entropy_for_qemu(tmp_path: Path) -> None:
    path = tmp_path / "s"
    script = "modprobe virtio_rng; for i in 1 2 3 4; do head -c 4096 /dev/hwrng | sha256sum; done"
    with served(path, "rng"):
        lines = boot(tmp_path, path, ["-device", "vhost-user-rng-pci,chardev=c"], script)
    sums = {line for line in lines if line.endswith("  -")}
    assert len(sums) == 4
    assert f"{hashlib.sha256(bytes(4096)).hexdigest()}  -" not in sums


def test_a_network_card_for_qemu(tmp_path: Path) -> None:
    path, wire = tmp_path / "s", tmp_path / "wire"
    script = """
        modprobe virtio_net; ip link set eth0 up; ip addr add 192.0.2.2/24 dev eth0
        ping -c 5 -i 0.2 -s 1400 -p 5a 192.0.2.1
    """
    # Without vectors: QEMU 7.2 on TCG ends with SIGSEGV at vhost-user's first MSI-X interrupt, whatever serves it.
    front = ["-netdev", "vhost-user,chardev=c,id=n", "-device", "virtio-net-pci,netdev=n,vectors=0"]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(wire))
        listener.listen(1)
        answers = threading.Thread(target=answer, args=(listener,), daemon=True)
        answers.start()
        with served(path, "net", f"socket={wire}"):
            lines = boot(tmp_path, path, front, script)
        answers.join(20)
        assert not answers.is_alive()
    assert "5 packets transmitted, 5 packets received, 0% packet loss" in lines


def answer(listener: socket.socket) -> None:
    """Who is at 192.0.2.1: answers to ARP and to echo requests, as long as the other end is there."""
    connection, _ = listener.accept()
    with connection, connection.makefile("rb") as wire:
        while len(head := wire.read(4)) == 4:
            frame = wire.read(int.from_bytes(head))
            kind, rest = frame[12:14], frame[14:]
            if kind == b"\x08\x06":
                back = rest[:6] + b"\0\2" + OURS + rest[24:28] + rest[8:18]
            elif kind == b"\x08\0" and rest[9] == 1:
                # Type 8 becomes 0, and the checksum more by as much.
                checksum = int.from_bytes(rest[22:24]) + 0x800
                checksum = (checksum & 0xFFFF) + (checksum >> 16)
                back = rest[:12] + rest[16:20] + rest[12:16] + b"\0\0" + checksum.to_bytes(2) + rest[24:]
            else:
                continue
            frame = frame[6:12] + OURS + kind + back
            connection.sendall(len(frame).to_bytes(4) + frame)
