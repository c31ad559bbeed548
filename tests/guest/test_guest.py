"""The image `tiny` as it is: Debian's kernel and our user space, under QEMU's software CPU."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from console import run

from kvmkit.guest.client import AgentClient, AgentGone
from kvmkit.guest.images import GuestImage, ensure, verify

pytestmark = [
    pytest.mark.guest,
    pytest.mark.skipif(not shutil.which("qemu-system-x86_64"), reason="QEMU is not installed (qemu-system-x86)"),
]


@pytest.fixture(scope="module")
def image() -> GuestImage:
    return ensure()


class Guest:
    def __init__(self, image: GuestImage, directory: Path) -> None:
        ours, theirs = socket.socketpair()
        self.console = directory / "console"
        append = f"console=ttyS0 kvmkit.channel=ttyS1 panic=-1 {image.append}"
        command = ["qemu-system-x86_64", "-M", "q35", "-accel", "tcg", "-m", "512", "-nodefaults", "-no-user-config"]
        command += ["-display", "none", "-no-reboot", "-kernel", str(image.kernel), "-initrd", str(image.initrd)]
        command += ["-append", append, "-serial", f"file:{self.console}"]
        command += ["-chardev", f"socket,id=agent,fd={theirs.fileno()}", "-serial", "chardev:agent"]
        self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        theirs.close()
        self.socket = ours
        self.client = AgentClient(ours.fileno())

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.socket.close()


@pytest.fixture(scope="module")
def guest(image: GuestImage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    guest = Guest(image, tmp_path_factory.mktemp("guest"))
    try:
        guest.client.wait_hello(100)
        yield guest
    finally:
        guest.end()


def test_the_image_is_whole(image: GuestImage) -> None:
    assert verify() == []
    assert image.initrd.stat().st_size < 10 << 20


def test_a_damaged_image_is_found_out(image: GuestImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVMKIT_HOME", str(tmp_path))
    copy = tmp_path / "cache" / "images" / "tiny" / image.kernel.parent.name
    shutil.copytree(image.kernel.parent, copy)
    assert ensure().kernel == copy / "vmlinuz"
    data = bytearray((copy / "initrd").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "initrd").write_bytes(data)
    assert len(verify()) == 1
    assert "initrd: damaged" in verify()[0]


def test_it_is_the_kernel_it_says(guest: Guest, image: GuestImage) -> None:
    ran = run(guest.client, "sh", "-c", "uname -r; exit 7")
    assert (ran.status, ran.out) == (7, f"{image.release}\n".encode())


@pytest.mark.parametrize(
    ("argv", "status"),
    [
        (["true"], 0),
        (["no-such-command"], 127),
        (["/etc/passwd"], 126),
        (["sh", "-c", "kill -15 $$"], 128 + 15),
    ],
)
def test_statuses(guest: Guest, argv: list[str], status: int) -> None:
    assert run(guest.client, *argv).status == status


def test_it_is_a_debian(guest: Guest) -> None:
    assert b"\nID=debian\n" in run(guest.client, "cat", "/etc/os-release").out
    assert run(guest.client, "hostname").out == b"debian\n"
    for command in ("ls /", "ps", "ip addr", "mount", "id", "dmesg", "sh -c :", "df", "free"):
        assert run(guest.client, *command.split()).status == 0


def test_a_megabyte_comes_out_whole(guest: Guest) -> None:
    ran = run(guest.client, "sh", "-c", "seq 1 200000 | head -c 1000000", timeout=100)
    assert ran.out == b"".join(b"%d\n" % i for i in range(1, 200001))[:1000000]


def test_binary_data_goes_through_the_guest_and_back(guest: Guest) -> None:
    data = bytes(range(256)) * 400
    assert run(guest.client, "cat", data=data, timeout=100).out == data


def test_a_terminal(guest: Guest) -> None:
    ran = run(guest.client, "sh", "-c", "tty; stty size; echo $TERM", tty=True, env={"TERM": "dumb"})
    assert ran.out == b"/dev/pts/0\r\n24 80\r\ndumb\r\n"


def test_the_loopback_is_up(guest: Guest) -> None:
    assert run(guest.client, "ping", "-c", "1", "-W", "5", "127.0.0.1").status == 0


def test_orphans_are_reaped(guest: Guest) -> None:
    assert run(guest.client, "sh", "-c", "for i in 1 2 3 4 5; do (sleep 0.1 &); done").status == 0
    ran = run(guest.client, "sh", "-c", "sleep 0.5; cat /proc/[0-9]*/stat | grep -c ') Z'")
    assert ran.out == b"0\n"


@pytest.mark.parametrize(
    "module",
    "virtio_blk virtio_net virtio_scsi virtio_console virtio_balloon virtio_rng virtio_input virtiofs sd_mod sr_mod"
    " virtio_pmem virtio_mmio virtio_pci vmw_vsock_virtio_transport overlay kvm ext4".split(),
)
def test_modules_load_signed(guest: Guest, module: str) -> None:
    ran = run(guest.client, "modprobe", module)
    assert (ran.status, ran.err) == (0, b"")
    assert run(guest.client, "cat", "/proc/sys/kernel/tainted").out == b"0\n"


def test_without_a_host_the_console_gets_a_shell(image: GuestImage, tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    append = f"console=ttyS0 kvmkit.channel=console panic=-1 {image.append}"
    command = ["qemu-system-x86_64", "-M", "q35", "-accel", "tcg", "-m", "512", "-nodefaults", "-display", "none"]
    command += ["-no-reboot", "-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", append]
    command += ["-chardev", f"socket,id=console,fd={theirs.fileno()}", "-serial", "chardev:console"]
    with ours, theirs, subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL) as process:
        theirs.close()
        try:
            ours.settimeout(100)
            seen = b""
            while b"# " not in seen:  # busybox asks the terminal for its size after it
                seen += ours.recv(4096)
            ours.sendall(b"echo sum $((40+2)); exit\n")
            while data := ours.recv(4096):
                seen += data
            assert b"sum 42" in seen
            assert process.wait(60) == 0
        finally:
            process.kill()


def test_poweroff_ends_the_machine(image: GuestImage, tmp_path: Path) -> None:
    guest = Guest(image, tmp_path)
    try:
        guest.client.wait_hello(100)
        guest.client.poweroff()
        assert guest.process.wait(60) == 0
    finally:
        guest.end()


def test_the_guests_own_poweroff_does_too(image: GuestImage, tmp_path: Path) -> None:
    guest = Guest(image, tmp_path)
    try:
        guest.client.wait_hello(100)
        with pytest.raises(AgentGone):
            guest.client.run(["sh", "-c", "poweroff; sleep 60"], timeout=60)
        assert guest.process.wait(60) == 0
    finally:
        guest.end()
