"""Start the test host, find the one that runs, stop it.

A host stays warm: it is QEMU in a session of its own, and a directory in the runtime directory holds its socket, pid
and console. One host per image and checkout; a lock serves one user of it at a time.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from kvmkit.errors import HostError

from . import image, initrd
from .channel import Channel

CHECKOUT = Path(__file__).resolve().parents[2]
PARTS_BYTES = 1 << 30
"""Size of the (sparse) disk through which files are pushed."""
BOOT_SECONDS = 120
LIFE = "5h"


@dataclass(frozen=True, slots=True)
class Shape:
    """What the host is made of. Two of these are two hosts."""

    cpu: str = "EPYC,+svm"
    cpus: int = 1
    memory: str = "4G"
    idle: int = 900
    counted: bool = False
    """Its clock counts instructions instead of the time that passes, whatever QEMU takes for them."""


@dataclass(slots=True)
class Host:
    """A host that answers. `started` is false when it was found warm."""

    channel: Channel
    directory: Path
    started: bool

    @property
    def parts_file(self) -> Path:
        return self.directory / "parts.img"

    def state(self) -> str:
        """What its processors do, twice (a spinning one moves, a sleeping one is halted), and its console's end."""
        return "\n".join([*self.registers(), "half a second later:", *self.registers(), *self.said()])

    def said(self) -> list[str]:
        """The ends of its console and of what its QEMU printed."""
        names = {"console": "console", "QEMU": "qemu.log"}
        return [f"{who}: {line}" for who, name in names.items() for line in lines(self.directory / name)[-20:]]

    def registers(self) -> list[str]:
        time.sleep(0.5)
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.settimeout(5)
            try:
                monitor.connect(str(self.directory / "monitor"))
                monitor.sendall(b"info registers -a\n")
                text = b""
                while text.count(b"(qemu) ") < 2:  # before the command, and after its answer
                    if not (data := monitor.recv(1 << 16)):
                        break
                    text += data
            except OSError as error:
                return [f"QEMU's monitor does not answer: {error}"]
        shown = ("CPU#", "RIP=", "RAX=", "CR0=", "EFER=")
        return [line for line in text.decode(errors="replace").splitlines() if line.startswith(shown)]


def directory(shape: Shape) -> Path:
    """Where a host's socket and files are; short, for a socket's path has room for some 100 bytes."""
    base = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    name = hashlib.sha256(repr((shape, image.recipe(), CHECKOUT, os.getuid())).encode()).hexdigest()[:12]
    return Path(base) / f"kvmkit-kvmhost-{name}"


def command(built: Path, where: Path, shape: Shape) -> list[str]:
    clock = ["-accel", "tcg,thread=single", "-icount", "shift=0"] if shape.counted else ["-accel", "tcg,thread=multi"]
    return [
        *("timeout", "--kill-after=10", LIFE, "qemu-system-x86_64"),
        *("-M", "q35", *clock, "-cpu", shape.cpu, "-smp", str(shape.cpus), "-m", shape.memory),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-kernel", str(built / "vmlinuz"), "-initrd", str(where / "initrd")),
        *("-append", "console=ttyS0 panic=-1 quiet mitigations=off"),
        *("-serial", f"file:{where}/console"),
        *("-drive", f"file={built}/root.ext4,format=raw,if=none,id=root,snapshot=on"),
        *("-device", "virtio-blk-pci,drive=root,serial=root"),
        # Written from outside while the host runs: no lock, and read-only inside.
        *("-blockdev", f"driver=file,node-name=parts,filename={where}/parts.img,read-only=on,locking=off"),
        *("-device", "virtio-blk-pci,drive=parts,serial=parts"),
        *("-device", "virtio-serial-pci", "-chardev", f"socket,id=port,path={where}/port,server=on,wait=off"),
        *("-device", "virtserialport,chardev=port,name=kvmkit.host"),
        *("-monitor", f"unix:{where}/monitor,server=on,wait=off"),
        *("-pidfile", f"{where}/pid"),
    ]


@contextmanager
def host(shape: Shape) -> Iterator[Host]:
    """The warm host of this shape, or a new one; nobody else uses it meanwhile."""
    where = directory(shape)
    where.mkdir(mode=0o700, exist_ok=True)
    with open(where / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = find(where)
        started = found is None
        channel = found or start(where, shape)
        try:
            yield Host(channel, where, started)
        finally:
            channel.close()


def find(where: Path) -> Channel | None:
    """A connection to the host of this directory, if one is alive; one that does not answer is ended."""
    if running(where) is None:
        return None
    try:
        return Channel(where / "port", timeout=20)
    except (OSError, HostError):
        end(where)
        return None


def start(where: Path, shape: Shape) -> Channel:
    built = image.build()
    for name in ("port", "monitor", "pid", "console"):
        (where / name).unlink(missing_ok=True)
    (where / "initrd").write_bytes(initrd.make(built / "boot", shape.idle))
    with open(where / "parts.img", "wb") as parts:
        parts.truncate(PARTS_BYTES)
    with open(where / "qemu.log", "wb") as log:
        process = subprocess.Popen(
            command(built, where, shape),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    deadline = time.monotonic() + BOOT_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError, HostError):
            return Channel(where / "port", timeout=deadline - time.monotonic())
        time.sleep(0.05)
    said = [line for name in ("qemu.log", "console") if (where / name).exists() for line in lines(where / name)[-2:]]
    end(where)
    raise HostError(f"the KVM test host did not start: {' / '.join(said) or 'QEMU said nothing'}")


def lines(path: Path) -> list[str]:
    return path.read_text(errors="replace").strip().splitlines()


def running(where: Path) -> int | None:
    """The pid of this directory's QEMU, if that process is still it."""
    try:
        pid = int((where / "pid").read_text())
        command_line = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return None
    return pid if os.fsencode(f"{where}/port") in command_line else None


def end(where: Path) -> None:
    pid = running(where)
    if pid is not None:
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + 5
        while running(where) is not None and time.monotonic() < deadline:
            time.sleep(0.05)
        pid = running(where)
        if pid is not None:
            os.kill(pid, signal.SIGKILL)


def stop(shape: Shape) -> None:
    """End the host of this shape, if it runs, and remove its files."""
    where = directory(shape)
    end(where)
    shutil.rmtree(where, ignore_errors=True)
