"""A vhost-user backend in plain Python, which echoes; good, or bad as a test wants. Nothing of kvmkit is in it."""

from __future__ import annotations

import array
import contextlib
import mmap
import os
import select
import socket
import struct
import threading
from collections.abc import Callable

PROTOCOL, VERSION_1, INDIRECT = 1 << 30, 1 << 32, 1 << 28
MQ, REPLY_ACK, BACKEND_REQ, CONFIG, RESET = 1 << 0, 1 << 3, 1 << 5, 1 << 9, 1 << 13
GET_FEATURES, GET_PROTOCOL, QUEUES, GET_CONFIG, GET_BASE = 1, 15, 17, 24, 11


class Backend:
    """Listens at `path`. `spoil` sees each used element (head, written) and gives what to write; None: nothing.

    `answer` sees each reply (request, payload) and gives bytes to send in place of header and payload, or None.
    """

    def __init__(
        self,
        path: str,
        *,
        features: int = VERSION_1 | INDIRECT | 1,
        queues: int = 2,
        config: bytes = b"config--",
        spoil: Callable[[int, int], tuple[int, int] | None] | None = None,
        answer: Callable[[int, bytes], bytes | None] | None = None,
        hold: bool = False,
    ) -> None:
        self.features, self.queues, self.config = features | PROTOCOL, queues, config
        self.spoil, self.answer, self.hold = spoil, answer, hold
        self.held: list[tuple[int, int]] = []
        self.agreed = 0
        self.requests: list[int] = []
        self.connections = 0
        self.told = socket.socket()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen()
        self.wake = os.eventfd(0, os.EFD_NONBLOCK)
        self.over = False
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.over = True
        os.eventfd_write(self.wake, 1)
        self.thread.join()
        self.listener.close()
        self.told.close()
        os.close(self.wake)

    def __enter__(self) -> Backend:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        while not self.over:
            ready = select.select([self.listener, self.wake], [], [])[0]
            if self.wake in ready:
                return
            connection, _ = self.listener.accept()
            self.connections += 1
            self.regions: list[tuple[int, int, int, mmap.mmap, int]] = []
            self.rings: dict[int, dict[str, int]] = {}
            try:
                self._serve(connection)
            except (OSError, EOFError, struct.error):
                pass
            for ring in self.rings.values():
                for name in ("kick", "call"):
                    if name in ring:
                        os.close(ring[name])
            for region in self.regions:
                region[3].close()
            connection.close()

    def _serve(self, connection: socket.socket) -> None:
        while not self.over:
            kicks = {ring["kick"]: ring for ring in self.rings.values() if "kick" in ring}
            ready = select.select([connection, self.wake, *kicks], [], [])[0]
            if connection in ready:
                self._message(connection)
            for kick, ring in kicks.items():
                if kick in ready:
                    os.eventfd_read(kick)
                    self._turn(ring)

    def _message(self, connection: socket.socket) -> None:
        data, beside, _, _ = connection.recvmsg(12, 1024)
        if not data:
            raise EOFError
        request, flags, size = struct.unpack("<III", data)
        payload = b""
        while len(payload) < size:
            payload += connection.recv(size - len(payload))
        fds = array.array("i")
        for _, _, what in beside:
            fds.frombytes(what)
        self.requests.append(request)
        reply = self._handle(request, payload, list(fds))
        if reply is None and flags & 8 and request != 16:
            reply = bytes(8)
        if reply is not None:
            spoiled = self.answer(request, reply) if self.answer else None
            message = struct.pack("<III", request, 5, len(reply)) + reply
            connection.sendall(message if spoiled is None else spoiled)

    def _handle(self, request: int, payload: bytes, fds: list[int]) -> bytes | None:
        number = struct.unpack("<Q", payload[:8])[0] if len(payload) >= 8 else 0
        index = number & 0xFF
        if request == GET_FEATURES:
            return struct.pack("<Q", self.features)
        if request == 2:
            self.agreed = number
        elif request == GET_PROTOCOL:
            return struct.pack("<Q", MQ | REPLY_ACK | BACKEND_REQ | CONFIG | RESET)
        elif request == QUEUES:
            return struct.pack("<Q", self.queues)
        elif request == 21:
            self.told.close()
            self.told = socket.socket(fileno=fds[0])
        elif request == GET_CONFIG:
            return payload[:12] + self.config.ljust(len(payload) - 12, b"\0")[: len(payload) - 12]
        elif request == 25:
            offset, length, _ = struct.unpack("<III", payload[:12])
            self.config = self.config[:offset] + payload[12:] + self.config[offset + length :]
        elif request == 5:
            for region in self.regions:
                region[3].close()
            self.regions = []
            for i, fd in enumerate(fds):
                guest, size, user, offset = struct.unpack_from("<QQQQ", payload, 8 + 32 * i)
                self.regions.append((guest, size, user, mmap.mmap(fd, size, offset=offset), offset))
                os.close(fd)
        elif request == 8:
            self._ring(index)["size"] = number >> 32
        elif request == 9:
            _, _, desc, used, avail, _ = struct.unpack("<IIQQQQ", payload)
            self._ring(index).update(desc=desc, used=used, avail=avail)
        elif request == 10:
            self._ring(index)["next"] = number >> 32
        elif request == GET_BASE:
            ring = self.rings.pop(number & 0xFFFFFFFF)
            for name in ("kick", "call"):
                os.close(ring[name])
            return struct.pack("<II", number & 0xFFFFFFFF, ring["next"])
        elif request in (12, 13):
            self._ring(index)["kick" if request == 12 else "call"] = fds[0]
        return None

    def _ring(self, index: int) -> dict[str, int]:
        return self.rings.setdefault(index, {"next": 0, "done": 0})

    def _memory(self, address: int, length: int, *, user: bool = False) -> memoryview:
        for guest, size, mine, mapping, _ in self.regions:
            start = mine if user else guest
            if start <= address and address + length <= start + size:
                return memoryview(mapping)[address - start : address - start + length]
        raise EOFError(f"{address:#x}")

    def _turn(self, ring: dict[str, int]) -> None:
        avail = self._memory(ring["avail"], 4 + 2 * ring["size"], user=True)
        end = struct.unpack_from("<H", avail, 2)[0]
        while ring["next"] != end:
            (head,) = struct.unpack_from("<H", avail, 4 + 2 * (ring["next"] % ring["size"]))
            ring["next"] = (ring["next"] + 1) & 0xFFFF
            if self.hold:
                self.held.append((ring["next"], head))
                continue
            self._use(ring, head, self._echo(ring, head))
        if not self.hold:
            os.eventfd_write(ring["call"], 1)

    def _chain(self, ring: dict[str, int], head: int) -> list[tuple[int, int, int]]:
        table, index = ring["desc"], head
        user, found = True, []
        while True:
            address, length, flags, following = struct.unpack("<QIHH", self._memory(table + 16 * index, 16, user=user))
            if flags & 4:
                table, index, user = address, 0, False
                continue
            found.append((address, length, flags))
            if not flags & 1:
                return found
            index = following

    def _echo(self, ring: dict[str, int], head: int) -> int:
        data = b""
        written = 0
        for address, length, flags in self._chain(ring, head):
            if flags & 2:
                part = data[written : written + length]
                self._memory(address, length)[: len(part)] = part
                written += len(part)
            else:
                data += bytes(self._memory(address, length))
        return written

    def _use(self, ring: dict[str, int], head: int, written: int) -> None:
        used = self._memory(ring["used"], 4 + 8 * ring["size"], user=True)
        element = self.spoil(head, written) if self.spoil else (head, written)
        if element is None:
            return
        struct.pack_into("<II", used, 4 + 8 * (ring["done"] % ring["size"]), *element)
        ring["done"] += 1
        struct.pack_into("<H", used, 2, ring["done"] & 0xFFFF)

    def change_config(self, config: bytes) -> None:
        self.config = config
        self.told.sendall(struct.pack("<III", 2, 1, 0))
