"""What runs inside the test host: takes requests over a virtio-serial port, one at a time. Standard library only.

Frames in both directions: a type byte, a little-endian u32 length, the payload.

    outside -> host   R  JSON: {"run": [argv], "env": {...}, "cwd": path} | {"unpack": name, "digest": text, "size": n}
                      S  the number of a signal, as text, for the running command's group
                      P  nothing: only the interrupt that it comes with matters
    host -> outside   O, E  standard output and error;  X  JSON {"status": n} or {"error": text};  H  hello, see below

`unpack` empties /kvmkit/NAME and extracts a tar of `size` bytes from the start of the disk with serial "parts".
The host says hello when somebody connects: {"parts": {name: digest}, "boot": the kernel's boot id}.
When nobody has asked for anything for IDLE seconds, or LIFE has passed, the host powers off.
"""

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import time
from pathlib import Path

IDLE = float(os.environ.get("IDLE", "900"))
LIFE = 4 * 3600
BLKFLSBUF = 0x1261
PORT = "kvmkit.host"
ROOT = Path("/kvmkit")


class Port:
    def __init__(self):
        names = Path("/sys/class/virtio-ports").glob("*/name")
        found = [name.parent.name for name in names if name.read_text().strip() == PORT]
        self.fd = os.open(f"/dev/{found[0]}", os.O_RDWR | os.O_NONBLOCK)
        self.buffer = b""

    def connected(self):
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        return not any(event & select.POLLHUP for _, event in poll.poll(0))

    def send(self, kind, payload):
        data = memoryview(kind + struct.pack("<I", len(payload)) + payload)
        while data:
            try:
                data = data[os.write(self.fd, data) :]
            except BlockingIOError:
                if not self.connected():
                    return
                select.select([], [self.fd], [], 1)

    def receive(self):
        """What has come: a frame, or None."""
        with contextlib.suppress(BlockingIOError):
            self.buffer += os.read(self.fd, 1 << 16)
        while len(self.buffer) >= 5:
            (length,) = struct.unpack_from("<I", self.buffer, 1)
            if len(self.buffer) < 5 + length:
                break
            frame = self.buffer[:1], self.buffer[5 : 5 + length]
            self.buffer = self.buffer[5 + length :]
            if frame[0] != b"P":
                return frame
        return None


def parts_disk():
    for device in Path("/sys/block").iterdir():
        with contextlib.suppress(OSError):
            if (device / "serial").read_text().strip() == "parts":
                return f"/dev/{device.name}"
    raise OSError("no disk with serial 'parts'")


def unpack(name, digest, size, parts):
    parts.pop(name, None)
    target = ROOT / name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    with open(parts_disk(), "rb") as disk:
        fcntl.ioctl(disk, BLKFLSBUF, 0)  # the file behind the disk was rewritten from outside
        with tarfile.open(fileobj=disk, mode="r|", bufsize=1 << 20) as archive:
            archive.extractall(target)
    parts[name] = digest
    return {"status": 0}


def run(port, request):
    environment = os.environ | request.get("env", {})
    child = subprocess.Popen(
        request["run"],
        cwd=request.get("cwd", "/"),
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    streams = {child.stdout.fileno(): b"O", child.stderr.fileno(): b"E"}
    while streams:
        ready, _, _ = select.select([*streams, port.fd], [], [], 1)
        for fd in ready:
            if fd in streams:
                data = os.read(fd, 1 << 15)
                port.send(streams[fd], data) if data else streams.pop(fd)
        frame = port.receive() if port.fd in ready else None
        if frame and frame[0] == b"S":
            kill(child, int(frame[1]))
        if not port.connected():
            kill(child, signal.SIGKILL)
            break
        if child.poll() is not None and not ready:
            break  # something in the background kept the pipes open
    status = child.wait()
    kill(child, signal.SIGKILL)
    child.stdout.close()
    child.stderr.close()
    return {"status": status if status >= 0 else 128 - status}


def kill(child, number):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, number)


def answer(port, request, parts):
    try:
        if "unpack" in request:
            return unpack(request["unpack"], request["digest"], request["size"], parts)
        return run(port, request)
    except (OSError, tarfile.TarError, KeyError) as error:
        return {"error": str(error)}


def main():
    port = Port()
    parts = {}
    started = used = time.monotonic()
    greeted = False
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    while time.monotonic() - used < IDLE and time.monotonic() - started < LIFE:
        if not port.connected():
            greeted = False
            port.buffer = b""
            time.sleep(0.1)
            continue
        if not greeted:
            port.send(b"H", json.dumps({"parts": parts, "boot": boot}).encode())
            greeted = True
        select.select([port.fd], [], [], 1)
        frame = port.receive()
        if frame and frame[0] == b"R":
            request = json.loads(frame[1])
            if request.get("off"):
                break
            port.send(b"X", json.dumps(answer(port, request, parts)).encode())
            used = time.monotonic()


if __name__ == "__main__":
    try:
        main()
    finally:
        sys.stdout.flush()
        Path("/proc/sysrq-trigger").write_text("o")
        time.sleep(30)
