"""Which format a disk is in, and what a qcow2 image is based on. Source: QEMU's docs/interop/qcow2.txt.

A guest writes what it likes into a raw disk, a qcow2 header that names a file of the host's too. So what a disk holds
never decides alone: its name or its user says that it is not raw, and a raw name with another format's header is
refused. For the same reason each layer of an overlay is opened in a format that is written in the layer above.
"""

from __future__ import annotations

import os
import re
import struct
from typing import NamedTuple

from kvmkit.errors import BadInput

FORMATS = ("raw", "qcow2", "luks", "vmdk", "vhdx", "vdi")
ENDINGS = {".qcow2": "qcow2", ".qcow": "qcow2", ".vmdk": "vmdk", ".vhdx": "vhdx", ".vdi": "vdi"}
MAGICS = (
    (0, b"QFI\xfb", "qcow2"),
    (0, b"KDMV", "vmdk"),
    (0, b"vhdxfile", "vhdx"),
    (0x40, b"\x7f\x10\xda\xbe", "vdi"),
    (0, b"LUKS\xba\xbe", "luks"),
)
REMOTE = ("nbd", "nbd+unix", "iscsi", "rbd")
_SCHEME = re.compile(r"([a-z+]+)://")
_PROTOCOL = re.compile(r"[A-Za-z0-9+.-]*:")
MOST_LAYERS = 32
MOST_NAME = 1023  # bytes of a backing file's name
EXTERNAL_DATA = 1 << 2
BACKING_FORMAT, DATA_FILE = 0xE2792ACA, 0x44415441


class Layer(NamedTuple):
    """One file of a disk. The next layer is what it is based on. `encrypted`: a key is needed."""

    path: str
    format: str
    encrypted: bool = False


class Qcow2(NamedTuple):
    """A header. `size`: bytes of the guest's disk; `backing` as it is written there, and its format; empty: none."""

    size: int
    backing: str
    backing_format: str
    encrypted: bool


def remote(path: str) -> str:
    """The protocol of a disk that is no file here, such as nbd://HOST/NAME; empty: it is one."""
    match = _SCHEME.match(path)
    return match[1] if match is not None and match[1] in REMOTE else ""


def whole_path(base: str, path: str) -> str:
    """`path` in directory `base`; what is no file stays as it is."""
    return path if remote(path) else os.path.join(base, path)


def decide(path: str, given: str = "") -> str:
    """The format of a disk: `given`, or what its name says. Raises BadInput where these and its content differ."""
    where = f"disk {path}"
    if given and given not in FORMATS:
        raise BadInput(f"{where}: format={given}: there are {', '.join(FORMATS)}")
    if remote(path):
        return given or "raw"
    found = content(path)
    if given:
        if given not in ("raw", found):
            raise BadInput(f"{where}: format={given}: it holds {_called(found)}")
        return given
    ending = os.path.splitext(path)[1].lower()
    named = ENDINGS.get(ending, "raw")
    if found == "luks":  # a disk that the guest itself encrypts, as a rule
        found = "raw"
    if named == found:
        return named
    if named == "raw":
        raise BadInput(
            f"{where}: holds {_called(found)}, but its name does not end in .{found}: add format={found} if that is"
            " what you made, or format=raw if a guest wrote it there"
        )
    raise BadInput(f"{where}: is named as {_called(named)} and holds none: add format=raw if it is a raw image")


def _called(name: str) -> str:
    return "no image format's header" if name == "raw" else f"a {name} image"


def content(path: str) -> str:
    """The format whose magic number a file has; raw where it has none, or can't be read (which is said elsewhere)."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            head = os.pread(fd, 128, 0)
        finally:
            os.close(fd)
    except OSError:
        return "raw"
    return next((name for at, magic, name in MAGICS if head[at : at + len(magic)] == magic), "raw")


def layers(path: str, format: str, allowed: str = "") -> list[Layer]:
    """The disk's file, what that is based on, and so on. Nothing is opened by guess.

    A base lies in the directory of the image on it or is named by `allowed`: who gives somebody an image shall not
    choose a file of theirs that its guest sees. Raises BadInput.
    """
    found: list[Layer] = []
    top = path
    while True:
        if len(found) == MOST_LAYERS:
            raise BadInput(f"disk {top}: is based on more than {MOST_LAYERS} images, or on itself")
        if format != "qcow2":
            return [*found, Layer(path, format, format == "luks")]
        header = read_qcow2(path)
        found.append(Layer(path, format, header.encrypted))
        if not header.backing:
            return found
        path, format = _base(path, header, allowed), header.backing_format


def _base(path: str, header: Qcow2, allowed: str) -> str:
    where = f"disk {path}"
    if _PROTOCOL.match(header.backing):
        raise BadInput(f"{where}: is based on {header.backing!r}, no plain path: qemu-img rebase -u gives it one")
    if header.backing_format not in FORMATS or header.backing_format == "luks":
        mend = f"qemu-img rebase -u -b {header.backing} -F qcow2 {path} (or -F raw)"
        raise BadInput(f"{where}: does not say in which format its base is, and guessing is not safe: {mend}")
    directory = os.path.dirname(os.path.abspath(path))
    base = os.path.normpath(os.path.join(directory, header.backing))
    if os.path.dirname(os.path.realpath(base)) == os.path.realpath(directory):
        return base
    if allowed and os.path.realpath(allowed) == os.path.realpath(base):
        return base
    from kvmkit.paths import cache_dir, data_dir

    real = os.path.realpath(base)
    if any(real.startswith(os.path.realpath(own) + "/") for own in (cache_dir(), data_dir())):
        return base
    raise BadInput(f"{where}: is based on {base}, in another directory: add backing={base} if the guest may read that")


def read_qcow2(path: str) -> Qcow2:
    """The header of a qcow2 image. Raises BadInput for one that is not whole, or that needs what is not done here."""
    try:
        with open(path, "rb") as file:
            data = file.read(65536)
    except OSError as error:
        raise BadInput(f"disk {path}: {error.strerror}") from None
    try:
        return parse_qcow2(data)
    except ValueError as error:
        raise BadInput(f"disk {path}: {error}") from None


def parse_qcow2(data: bytes) -> Qcow2:
    """The same of the image's first 64 KiB. Raises ValueError."""
    if len(data) < 72 or data[:4] != b"QFI\xfb":
        raise ValueError("is no qcow2 image")
    version, name_at, name_size, _bits, size, crypt = struct.unpack_from(">IQIIQI", data, 4)
    if version not in (2, 3):
        raise ValueError(f"is qcow2 of version {version}, which is not known")
    at = 72
    if version == 3:
        if len(data) < 104:
            raise ValueError("its header is cut off")
        (incompatible,) = struct.unpack_from(">Q", data, 72)
        (at,) = struct.unpack_from(">I", data, 100)
        if incompatible & EXTERNAL_DATA:
            raise ValueError("keeps its data in another file, which is not done here: qemu-img convert mends that")
    backing_format = ""
    while at + 8 <= len(data):
        kind, length = struct.unpack_from(">II", data, at)
        if kind == 0 or at + 8 + length > len(data):
            break
        if kind == BACKING_FORMAT:
            backing_format = data[at + 8 : at + 8 + length].decode("ascii", "replace")
        at += 8 + (length + 7) // 8 * 8
    backing = ""
    if name_at:
        if name_size > MOST_NAME or name_at + name_size > len(data):
            raise ValueError("the name of its base is not in its header")
        backing = os.fsdecode(data[name_at : name_at + name_size])
        if "\0" in backing:
            raise ValueError("the name of its base holds a null byte")
    if crypt not in (0, 2):
        raise ValueError("has the old encryption, which is not safe: qemu-img convert removes it")
    return Qcow2(size, backing, backing_format, crypt == 2)
