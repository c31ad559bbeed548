"""The frames between host and agent, version 2. agent/agent.h describes them; change both together.

What comes from a guest is hostile until checked: lengths are bounded by what each type may hold, and the
first byte that does not fit ends the conversation with a ProtocolError of one line.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

from kvmkit.errors import BadInput, KvmkitError

VERSION = 2
PAYLOAD_MAX = 0xFFFF
HOST_PORT = 1024
"""Where the agent connects to by vsock, from a port that only the guest's root may have."""
FLAG_TTY = 1
FLAG_STDIN = 2
ARGUMENTS_MAX = 2048  # arguments and environment entries of one command

HEADER = struct.Struct("<BBH")  # type, command id, payload length


class Limits(NamedTuple):
    """A channel's, in bytes."""

    data: int
    """In one frame."""
    stdin_window: int
    """On the way to a command before it takes them."""
    output_window: int
    """The same for each of a command's stdout and stderr."""


SERIAL = Limits(4096, 8192, 65536)
VSOCK = Limits(32768, 262144, 262144)


class ProtocolError(KvmkitError):
    """The guest's agent said what it never should: it is broken, or the guest is hostile."""


class Type(IntEnum):
    HELLO = 0x81
    EXEC = 0x82
    STDIN = 0x83
    SIGNAL = 0x84
    RESIZE = 0x85
    CREDIT = 0x86
    CLOSE = 0x87
    POWEROFF = 0x88
    STARTED = 0x89
    STDOUT = 0x8A
    STDERR = 0x8B
    EXIT = 0x8C
    ERROR = 0x8D
    READ = 0x8E
    WRITE = 0x8F
    TIME = 0x90
    ENTROPY = 0x91
    GROW = 0x92


class Stage(IntEnum):
    """How far a command came that did not start."""

    RESOURCES = 1
    DIRECTORY = 2
    EXEC = 3
    USER = 4
    FILE = 5


FROM_GUEST = {
    Type.HELLO: (7, 7),
    Type.CREDIT: (5, 5),
    Type.CLOSE: (1, 1),
    Type.STARTED: (4, 4),
    Type.STDOUT: (1, PAYLOAD_MAX),
    Type.STDERR: (1, PAYLOAD_MAX),
    Type.EXIT: (2, 2),
    Type.ERROR: (2, 2),
}
"""What the guest may send, and the least and most bytes each may carry; data has its channel's limit too."""

HELLO = b"kvmkit" + bytes([VERSION])
_HELLO_FRAME_START = HEADER.pack(Type.HELLO, 0, 7) + HELLO[:-1]


class Frame(NamedTuple):
    type: Type
    id: int  # of the command; 0 is the agent itself
    payload: bytes


def encode(kind: Type, command: int, payload: bytes = b"") -> bytes:
    return HEADER.pack(kind, command, len(payload)) + payload


def encode_exec(
    command: int,
    argv: list[str],
    env: dict[str, str],
    cwd: str,
    flags: int,
    size: tuple[int, int],
    user: str = "",
) -> bytes:
    """The EXEC frame; `size` is (rows, columns). BadInput: what no process could be given, or more than fits."""
    if not argv or not argv[0]:
        raise BadInput("the command to run in the guest is empty")
    for name in env:
        if not name or "=" in name:
            raise BadInput(f"{name!r} can't be the name of an environment variable")
    strings = [cwd, user, *argv, *(f"{name}={value}" for name, value in env.items())]
    if len(strings) - 2 > ARGUMENTS_MAX:
        raise BadInput(f"a guest command takes at most {ARGUMENTS_MAX} arguments and variables, not {len(strings) - 2}")
    encoded = [text.encode(errors="surrogateescape") for text in strings]
    for text, data in zip(strings, encoded, strict=True):
        if b"\0" in data:
            raise BadInput(f"the argument {text!r} holds a NUL byte")
    rows, columns = (max(0, min(value, 0xFFFF)) for value in size)
    payload = struct.pack("<BHHHH", flags, rows, columns, len(argv), len(env)) + b"\0".join([*encoded, b""])
    if len(payload) > PAYLOAD_MAX:
        raise BadInput(f"arguments and environment of a guest command are {len(payload)} bytes; {PAYLOAD_MAX} fit")
    return encode(Type.EXEC, command, payload)


def encode_file(command: int, path: str, mode: int | None = None) -> bytes:
    """The READ frame of a file in the guest, or, with `mode`, its WRITE. BadInput: no file can have that name."""
    data = path.encode(errors="surrogateescape")
    if not data or b"\0" in data or len(data) > 4095:
        raise BadInput(f"{path!r} can't be a file's name")
    if mode is None:
        return encode(Type.READ, command, data + b"\0")
    return encode(Type.WRITE, command, struct.pack("<H", mode) + data + b"\0")


class Decoder:
    """Turns the guest's bytes into frames, however they are cut. Holds at most one incomplete frame.

    Before HELLO anything is skipped, up to `noise_max` bytes: firmware may have written to the port.
    """

    NOISE_MAX = 1 << 16

    def __init__(self, noise_max: int = NOISE_MAX, data_max: int = SERIAL.data) -> None:
        self._noise_max = noise_max
        self._data_max = data_max
        self._buffer = bytearray()
        self._skipped = 0
        self.greeted = False

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that `data` completes. ProtocolError: it can't be an agent's."""
        self._buffer += data
        if not self.greeted and not self._find_hello():
            return []
        frames: list[Frame] = []
        at = 0
        while len(self._buffer) - at >= HEADER.size:
            kind, command, size = HEADER.unpack_from(self._buffer, at)
            limits = FROM_GUEST.get(kind)
            if limits is None:
                raise ProtocolError(f"the guest's agent sent a frame of unknown type {kind:#x}")
            most = min(limits[1], self._data_max)
            if not limits[0] <= size <= most:
                raise ProtocolError(f"the guest's agent sent {Type(kind).name} with {size} bytes")
            end = at + HEADER.size + size
            if end > len(self._buffer):
                break
            frames.append(_checked(Frame(Type(kind), command, bytes(self._buffer[at + HEADER.size : end]))))
            at = end
        del self._buffer[:at]
        return frames

    def _find_hello(self) -> bool:
        at = self._buffer.find(_HELLO_FRAME_START)
        drop = at if at >= 0 else max(0, len(self._buffer) - len(_HELLO_FRAME_START) + 1)
        del self._buffer[:drop]
        self._skipped += drop
        if self._skipped > self._noise_max:
            raise ProtocolError("what the guest sends on the agent's channel is not an agent's")
        self.greeted = at >= 0
        return self.greeted


def _checked(frame: Frame) -> Frame:
    if frame.type is Type.HELLO:
        if frame.payload[:-1] != HELLO[:-1]:
            raise ProtocolError("the guest's agent sent a HELLO that is none")
        if frame.payload[-1] != VERSION:
            raise ProtocolError(f"the guest's agent speaks version {frame.payload[-1]}, this kvmkit version {VERSION}")
    elif frame.id == 0:
        raise ProtocolError(f"the guest's agent sent {frame.type.name} for no command")
    elif (frame.type is Type.CLOSE or frame.type is Type.CREDIT) and frame.payload[0] != 0:
        raise ProtocolError(f"the guest's agent sent {frame.type.name} for a stream it does not read")
    return frame
