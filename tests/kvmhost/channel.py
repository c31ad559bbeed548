"""The outer end of the agent's port: see `agent` for the frames."""

from __future__ import annotations

import json
import select
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from kvmkit.errors import HostError

POKE_SECONDS = 0.25
"""How often a host that says nothing is sent a frame without meaning: an interrupt more.

QEMU's VMRUN and #VMEXIT change the processor's word of pending interrupts without the lock that its timers take
(target/i386/tcg/sysemu/svm_helper.c, 7.2), so that now and then the request of the APIC's timer is lost: the interrupt
is in IRR, and the processor goes on without a look at it. Any further interrupt has it look again.
"""

Sink = Callable[[bytes, bytes], None]
"""Called with a frame's type (b"O" or b"E") and the bytes of output."""


class Gone(HostError):
    """The host ended: its kernel panicked, or its QEMU did."""


class Overdue(HostError):
    """The host said nothing that ends a request before the request's time was up."""


class Channel:
    """A connection to a running test host. `hello` is what the host said first: its parts' digests and its boot id."""

    def __init__(self, path: Path, timeout: float) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.buffer = b""
        deadline = time.monotonic() + timeout
        self.socket.connect(str(path))
        kind, payload = self.receive(deadline)
        if kind != b"H":
            raise HostError("the KVM test host answered with something else than its hello")
        self.hello: dict[str, Any] = json.loads(payload)

    def receive(self, deadline: float | None) -> tuple[bytes, bytes]:
        """One frame. Raises Overdue at the deadline, HostError when the host is gone."""
        while True:
            if len(self.buffer) >= 5:
                (length,) = struct.unpack_from("<I", self.buffer, 1)
                if len(self.buffer) >= 5 + length:
                    frame = self.buffer[:1], self.buffer[5 : 5 + length]
                    self.buffer = self.buffer[5 + length :]
                    return frame
            left = POKE_SECONDS if deadline is None else min(POKE_SECONDS, deadline - time.monotonic())
            if left <= 0:
                raise Overdue("the KVM test host did not answer in time")
            if not select.select([self.socket], [], [], left)[0]:
                self.poke()
                continue
            try:
                data = self.socket.recv(1 << 16)
            except ConnectionResetError:
                data = b""
            if not data:
                raise Gone("the KVM test host is gone")
            self.buffer += data

    def request(self, what: dict[str, Any], sink: Sink = lambda kind, data: None, timeout: float | None = None) -> int:
        """Ask for something, pass its output on, and return its exit status."""
        self.send(b"R", json.dumps(what).encode())
        return self.hear(sink, timeout)

    def hear(self, sink: Sink, timeout: float | None) -> int:
        """Pass on the output of the request that runs, until it ends; `timeout` is in seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            kind, payload = self.receive(deadline)
            if kind == b"X":
                answer = json.loads(payload)
                if "error" in answer:
                    raise HostError(f"in the KVM test host: {answer['error']}")
                return int(answer["status"])
            sink(kind, payload)

    def signal(self, number: int) -> None:
        """Send a signal to the command that runs."""
        self.send(b"S", str(number).encode())

    def poke(self) -> None:
        with suppress(BlockingIOError):  # it has not read the last ones yet
            self.socket.send(b"P" + bytes(4), socket.MSG_DONTWAIT)

    def send(self, kind: bytes, payload: bytes) -> None:
        self.socket.sendall(kind + struct.pack("<I", len(payload)) + payload)

    def close(self) -> None:
        self.socket.close()
