"""What a vhost-user GPU shows: the frontend's end of its display. Source: QEMU's docs/interop/vhost-user-gpu.rst.

One screen, which nobody sees; the last picture is kept for who asks.
"""

from __future__ import annotations

import socket
import struct
import threading

from .messages import close_all

HEADER = struct.Struct("<III")
RECT = struct.Struct("<IIIII")
PROTOCOL, DISPLAY_INFO, SCANOUT, UPDATE, DMABUF_SCANOUT, DMABUF_UPDATE = 1, 3, 7, 8, 9, 10
REPLY = 4
SCREENS = 16
RESPONSE_DISPLAY_INFO = 0x1101
MOST_SIDE = 8192
MOST_PAYLOAD = RECT.size + 4 * 8192 * 8192
"""Of one message: a picture of that size, drawn anew."""


class Display:
    """A screen of `width` by `height` pixels for a backend, which gets the other end by `connect`."""

    def __init__(self, width: int = 1280, height: int = 800) -> None:
        self.width, self.height = width, height
        self._lock = threading.Lock()
        self._size = (0, 0)
        self._pixels = bytearray()
        self._ours: socket.socket | None = None
        self._thread: threading.Thread | None = None

    def connect(self) -> socket.socket:
        """The end for a backend that begins; the one before is gone. To be closed when it was sent."""
        self.close()
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._thread = threading.Thread(target=self._serve, args=(self._ours,), name="gpu display", daemon=True)
        self._thread.start()
        return theirs

    def close(self) -> None:
        if self._ours is not None and self._thread is not None:
            try:
                self._ours.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            self._thread.join()
            self._ours = self._thread = None

    def picture(self) -> tuple[int, int, bytes]:
        """Width, height, and the pixels in rows from the top, four bytes each: blue, green, red, nothing."""
        with self._lock:
            return *self._size, bytes(self._pixels)

    def _serve(self, sock: socket.socket) -> None:
        with sock:
            try:
                while True:
                    request, _, size = HEADER.unpack(self._receive(sock, HEADER.size))
                    if size > MOST_PAYLOAD:
                        return
                    payload = self._receive(sock, size)
                    answer = self._take(request, payload)
                    if answer is not None:
                        sock.sendall(HEADER.pack(request, REPLY, len(answer)) + answer)
            except (OSError, EOFError, struct.error):
                pass  # it is gone, or sends what can't be: it is shown no more

    def _receive(self, sock: socket.socket, size: int) -> bytes:
        """What comes beside it is closed at once: a message in many parts must not leave us without descriptors."""
        data = bytearray()
        while len(data) < size:
            part, fds, _, _ = socket.recv_fds(sock, min(size - len(data), 1 << 20), 4)
            close_all(fds)
            if not part:
                raise EOFError
            data += part
        return bytes(data)

    def _take(self, request: int, payload: bytes) -> bytes | None:
        if request == PROTOCOL:
            return bytes(8)
        if request == DISPLAY_INFO:
            head = struct.pack("<IIQII", RESPONSE_DISPLAY_INFO, 0, 0, 0, 0)
            one = struct.pack("<IIIIII", 0, 0, self.width, self.height, 1, 0)
            return head + one.ljust(24 * SCREENS, b"\0")
        if request == DMABUF_UPDATE:  # the picture is in a graphics card's memory; the backend waits for our word
            return b""
        with self._lock:
            if request in (SCANOUT, DMABUF_SCANOUT):
                screen, width, height = struct.unpack_from("<III", payload)
                if screen == 0 and max(width, height) <= MOST_SIDE:
                    self._size = (width, height) if request == SCANOUT else (0, 0)
                    self._pixels = bytearray(4 * self._size[0] * self._size[1])
            elif request == UPDATE:
                screen, x, y, width, height = RECT.unpack_from(payload)
                if screen == 0:
                    self._draw(x, y, width, height, payload[RECT.size :])
        return None

    def _draw(self, x: int, y: int, width: int, height: int, pixels: bytes) -> None:
        across, down = self._size
        if x + width > across or y + height > down or len(pixels) < 4 * width * height:
            return
        for row in range(height):
            at = 4 * ((y + row) * across + x)
            self._pixels[at : at + 4 * width] = pixels[4 * width * row : 4 * width * (row + 1)]
