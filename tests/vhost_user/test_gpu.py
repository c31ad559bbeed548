"""QEMU's vhost-user-gpu as a backend: what a driver draws is what our screen shows."""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmkit.memory import GuestMemory
from kvmkit.testing import MmioDriver
from kvmkit.vhost_user.daemon import find
from kvmkit.vhost_user.display import HEADER, Display
from kvmkit.virtio.vhost_user import kinds
from kvmkit.virtio.vhost_user.device import VhostUserDevice

MIB = 1 << 20
PROGRAM = find("vhost-user-gpu", ["/usr/lib/qemu/vhost-user-gpu", "/usr/libexec/vhost-user-gpu"])
DISPLAY_INFO, CREATE, SCANOUT, FLUSH, TRANSFER, BACKING = 0x100, 0x101, 0x103, 0x104, 0x105, 0x106
OK, OK_DISPLAY_INFO = 0x1100, 0x1101


class Gpu(MmioDriver):
    def ask(self, kind: int, payload: bytes = b"", room: int = 24) -> tuple[int, bytes]:
        answer = self.request(0, struct.pack("<IIQII", kind, 0, 0, 0, 0) + payload, room)
        return int.from_bytes(answer[:4], "little"), answer[24:]


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    memory = GuestMemory(16 * MIB, shared=True)
    yield memory
    memory.close()


@pytest.mark.skipif(not PROGRAM, reason="vhost-user-gpu is not installed (qemu-system-gui)")
def test_what_is_drawn_is_shown(memory: GuestMemory, tmp_path: Path) -> None:
    path, width, height = str(tmp_path / "s"), 64, 48
    backend = subprocess.Popen([PROGRAM, f"--socket-path={path}"], stderr=subprocess.PIPE)
    device = VhostUserDevice(memory, kinds.gpu(), path, wait=20)
    assert device.display is not None
    with Gpu(device, memory) as guest:
        guest.start()
        assert guest.register(0x100 + 8) == 1, "one screen"
        kind, info = guest.ask(DISPLAY_INFO, room=24 + 16 * 24)
        assert kind == OK_DISPLAY_INFO
        assert struct.unpack_from("<6I", info) == (0, 0, 1280, 800, 1, 0)
        assert not any(info[24:])
        pixels, at = os.urandom(4 * width * height), 8 * MIB
        memory.write(at, pixels)
        whole = struct.pack("<IIII", 0, 0, width, height)
        assert guest.ask(CREATE, struct.pack("<IIII", 7, 2, width, height))[0] == OK
        assert guest.ask(BACKING, struct.pack("<IIQII", 7, 1, at, len(pixels), 0))[0] == OK
        assert guest.ask(SCANOUT, whole + struct.pack("<II", 0, 7))[0] == OK
        assert guest.ask(TRANSFER, whole + struct.pack("<QII", 0, 7, 0))[0] == OK
        assert guest.ask(FLUSH, whole + struct.pack("<II", 7, 0))[0] == OK
        end = time.monotonic() + 20
        while device.display.picture() != (width, height, pixels):
            assert time.monotonic() < end
            time.sleep(0.02)
        assert guest.ask(FLUSH, whole + struct.pack("<II", 8, 0))[0] >= 0x1200, "there is no such resource"
    backend.wait(20)
    assert backend.stderr is not None
    backend.stderr.close()


def test_a_backend_that_shows_what_can_not_be() -> None:
    display = Display()
    for request, payload in (
        (7, struct.pack("<III", 0, 1 << 30, 1 << 30)),
        (8, struct.pack("<IIIII", 0, 0, 0, 4, 4) + bytes(64)),
        (7, struct.pack("<III", 0, 4, 4)),
        (8, struct.pack("<IIIII", 0, 0xFFFFFFFF, 0, 4, 4) + bytes([1]) * 64),
        (8, struct.pack("<IIIII", 0, 0, 0, 4, 4) + bytes([1]) * 3),
        (8, struct.pack("<IIIII", 1, 0, 0, 4, 4) + bytes([1]) * 64),
        (99, b"anything"),
        (8, b""),
    ):
        with display.connect() as end:
            end.sendall(HEADER.pack(request, 0, len(payload)) + payload)
            end.sendall(HEADER.pack(1, 0, 0xFFFFFFFF))
            end.settimeout(20)
            with contextlib.suppress(ConnectionResetError):
                assert end.recv(1) == b"", "it hangs up"
    assert display.picture() == (4, 4, bytes(64))
    with display.connect() as end:
        end.sendall(HEADER.pack(8, 0, 24) + struct.pack("<IIIII", 0, 3, 3, 1, 1) + b"\1\2\3\4" + HEADER.pack(10, 0, 0))
        end.settimeout(20)
        assert end.recv(12) == HEADER.pack(10, 4, 0), "it is told that it may go on"
    display.close()
    assert display.picture()[2] == bytes(60) + b"\1\2\3\4"
