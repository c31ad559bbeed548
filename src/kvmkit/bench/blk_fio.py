"""A disk on the software CPU: fio in Linux, on kvmkit and on QEMU's TCG with an iothread, in turn.

Each measurement is a guest of its own: the image `tiny`, virtio-blk by PCI, and fio (this machine's, with its
libraries) on a second disk. The time is fio's own; CPU time is the process's from before fio starts until it ended.
"""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import IO, TYPE_CHECKING

import msgspec

from kvmkit.bench import blk, boot, points, qemu
from kvmkit.bench.points import PointReport, PointsReport, Round
from kvmkit.bench.processes import Child, cpu_ns, take_turns
from kvmkit.errors import HostError

if TYPE_CHECKING:
    from kvmkit.guest.images import GuestImage
    from kvmkit.guest.progress import Progress

MEMORY = 512 << 20
MISSING = "fio is not here: apt-get install fio"
START, END, LAST = b"measured:S\n", b"measured:E\n", b"measured:X\n"
LIBRARY = re.compile(r"(?:=> )?(/\S+) \(0x")
# The disks are told apart by their size.
SCRIPT = """
sectors() { cat /sys/block/$1/size 2> /dev/null; }
for i in $(seq 100); do
    for one in vda vdb; do
        test "$(sectors $one)" = DISK && disk=$one
        test "$(sectors $one)" = TOOLS && tools=$one
    done
    test "$disk" && test "$tools" && break
    sleep 0.1
done
cd /tmp && cpio -idu < /dev/$tools 2> /dev/null || exit 1
echo measured:S
/tmp/lib/LOADER --library-path /tmp/lib /tmp/bin/fio --name=one --filename=/dev/$disk --ioengine=libaio --direct=1 \\
    --time_based --runtime=RUNTIMEms --rw=WAY --bs=SIZE --iodepth=DEPTH --norandommap --randrepeat=1 --thread \\
    --gtod_reduce=1 --output-format=json --output=/tmp/out > /tmp/said 2>&1 || { cat /tmp/said; exit 1; }
echo measured:E
cat /tmp/out
echo measured:X
"""
WAYS = {("read", False): "randread", ("write", False): "randwrite", ("read", True): "read", ("write", True): "write"}


class Result(msgspec.Struct, frozen=True):
    """What fio says of one job: requests a second, and bytes."""

    iops: float
    io_bytes: int


def libraries(program: str) -> list[Path]:
    """What it is linked with, the loader included; nothing: ldd does not say."""
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
    return [Path(found) for found in LIBRARY.findall(listed)]


def pack_fio(archive: Path) -> str:
    """Write fio and its libraries into a cpio archive; returns its loader's name. Raises HostError: it is not here."""
    from kvmkit.guest.cpio import CpioWriter

    program = shutil.which("fio", path="/usr/local/bin:/usr/bin:/bin")
    if program is None:
        raise HostError(MISSING)
    needed = libraries(program)
    loader = next((library.name for library in needed if library.name.startswith("ld-")), None)
    if loader is None:
        raise HostError(f"{program}: ldd does not say which libraries it needs")
    with archive.open("wb") as file:
        writer = CpioWriter(file)
        writer.file("bin/fio", Path(program).read_bytes(), 0o755)
        for library in needed:
            writer.file(f"lib/{library.name}", library.read_bytes(), 0o755)
        writer.finish()
    return loader


class Bench:
    """What every run needs: the image, the disks, and how fio's loader is called."""

    def __init__(self, image: GuestImage, directory: Path, timeout: float) -> None:
        self.image, self.timeout = image, timeout
        self.disk, self.tools = directory / "disk.raw", directory / "tools.cpio"
        self.loader = pack_fio(self.tools)
        self.disk.write_bytes(os.urandom(1 << 20) * (blk.DISK >> 20))

    def script(self, point: blk.Point, seconds: float) -> str:
        values = {
            "DISK": blk.DISK // 512,
            "TOOLS": self.tools.stat().st_size // 512,
            "LOADER": self.loader,
            "RUNTIME": int(seconds * 1000),
            "WAY": WAYS[point.way, point.sequential],
            "SIZE": point.size,
            "DEPTH": point.depth,
        }
        return re.sub("|".join(values), lambda found: str(values[found[0]]), SCRIPT)

    def run(self, side: str, point: blk.Point, seconds: float) -> Round:
        """One guest. Raises RunFailedError."""
        command = ["sh", "-c", self.script(point, seconds)]
        return self._kvmkit(command) if side == "kvmkit" else self._qemu(command)

    def _kvmkit(self, command: list[str]) -> Round:
        options = ["--transport", "pci", "--disk", str(self.disk), "--disk", f"{self.tools},ro", "--", *command]
        with Child([*boot.kvmkit_command("tcg", MEMORY), *options], self.timeout, pipe=True) as child:
            found = measured(child, child.output)
            if status := child.wait():
                raise child.failed(f"exit status {status}")
        return found

    def _qemu(self, command: list[str]) -> Round:
        from kvmkit.errors import KvmkitError
        from kvmkit.guest.client import AgentClient

        ours, theirs = socket.socketpair()
        end, start = os.pipe()
        with ours, theirs:
            kernel, initrd = str(self.image.kernel), str(self.image.initrd)
            line = qemu.linux_on_pc(MEMORY, kernel, initrd, boot.append(self.image), theirs.fileno(), self.drives())
            with Child(line, self.timeout, pass_fds=[theirs.fileno()]) as child:
                theirs.close()
                client = AgentClient(ours.fileno())

                def work() -> None:
                    try:
                        client.wait_hello(child.left())
                        client.run(command, stdout=start, stderr=None, timeout=child.left())
                    except KvmkitError:
                        pass  # the reader sees that it has ended
                    finally:
                        os.close(start)

                thread = threading.Thread(target=work)
                thread.start()
                try:
                    found = measured(child, end)
                finally:
                    child.send(signal.SIGTERM)
                    child.wait()
                    thread.join()
                    os.close(end)
        return found

    def drives(self) -> list[str]:
        """QEMU's options for both disks."""
        return [
            *("-object", "iothread,id=io"),
            *("-blockdev", f"driver=file,node-name=f0,filename={self.disk},aio=io_uring"),
            *("-blockdev", "driver=raw,node-name=d0,file=f0", "-device", "virtio-blk-pci,drive=d0,iothread=io"),
            *("-blockdev", f"driver=file,node-name=f1,filename={self.tools},read-only=on"),
            *("-blockdev", "driver=raw,node-name=d1,file=f1,read-only=on", "-device", "virtio-blk-pci,drive=d1"),
        ]


def measured(child: Child, fd: int) -> Round:
    """Read what the script says, to its end. Raises RunFailedError when that does not come."""
    read_until(child, fd, START)
    before = cpu_ns(child.pid)
    read_until(child, fd, END)
    cpu = cpu_ns(child.pid) - before
    result = parse(read_until(child, fd, LAST)[: -len(LAST)])
    if result is None:
        raise child.failed("fio did not say what it did")
    return Round(result.iops, cpu / result.io_bytes if cpu > 0 else None)


def read_until(child: Child, fd: int, last: bytes) -> bytes:
    """Its output to the line `last`, that included. Raises RunFailedError when that does not come."""
    data = bytearray()
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    while not data.endswith(last):
        if poll.poll(child.left() * 1000):
            byte = os.read(fd, 1)  # what is behind it is the next one's
            if not byte:
                words = " ".join(data.decode(errors="replace").split()[-30:])
                raise child.failed(f"fio did not come to its end: {words}")
            data += byte
    return bytes(data)


def parse(text: bytes) -> Result | None:
    """fio's JSON, perhaps behind a few lines of notes; None: it is none, or nothing was done."""
    try:
        (job,) = json.loads(text[text.index(b"{") :])["jobs"]
        found = max((job[way] for way in ("read", "write")), key=lambda one: int(one["io_bytes"]))
        result = Result(float(found["iops"]), int(found["io_bytes"]))
    except (ValueError, KeyError, TypeError):
        return None
    return result if result.io_bytes > 0 and result.iops > 0 else None


def measure(seconds: float, runs: int, timeout: float, progress: Progress) -> PointsReport:
    """`runs` rounds, in each of which fio runs for `seconds`, for each side and point. `requests` are 0: time counts.

    Raises HostError when there is no fio, or the image can't be built.
    """
    from kvmkit.guest import images

    report = PointsReport(qemu.version())
    sides = ["kvmkit", *(["qemu"] if report.qemu_version is not None else [])]
    with tempfile.TemporaryDirectory(prefix="kvmkit-bench-") as name:
        bench = Bench(images.ensure("tiny", progress), Path(name), timeout + 10 * seconds)
        for point in blk.POINTS:
            found = report.points[point.name] = PointReport(0)
            take_turns(
                *(point.name, sides, runs, bench.run, point, seconds),
                into=found,
                failures=report.failures,
                progress=progress,
            )
            points.summarize(found)
    return report


def show(report: PointsReport, stream: IO[str]) -> None:
    """The report for people."""
    peer = f" beside QEMU {report.qemu_version} (TCG) with an iothread" if report.qemu_version is not None else ""
    title = f"a disk on the software CPU{peer}: fio in Linux, one file in the page cache; min / median / max"
    points.show(report, stream, title, "request", digits=3)
