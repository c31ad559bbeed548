"""A CD-ROM drive: blocks of 2048 bytes, a tray, a table of contents. Source: MMC-6 (T10/1836-D)."""

from __future__ import annotations

from kvmkit.block.file import DiskFile

from . import sense
from .disk import Disk
from .sense import CheckCondition, invalid_field
from .unit import LogicalUnit, Medium, Op

BLOCK = 2048
CD_BLOCKS = 360_000
"""More than any CD holds: it is a DVD then."""
PROFILE_CD, PROFILE_DVD = 0x0008, 0x0010
LEAD_IN_FRAMES = 150
LEAD_OUT = 0xAA
DATA_TRACK = 0x14
CAPABILITIES = 0x2A
ERROR_RECOVERY = 0x01
MEDIA_CLASS = 4
EJECT_REQUEST, NEW_MEDIA, MEDIA_REMOVAL = 1, 2, 3


class ReadOnly:
    """A medium that nobody writes, whatever is behind it."""

    def __init__(self, medium: Medium) -> None:
        self._medium = medium

    @property
    def readonly(self) -> bool:
        return True

    @property
    def file(self) -> DiskFile | None:
        """The host's, if it is one."""
        return getattr(self._medium, "file", None)

    @property
    def size(self) -> int:
        return self._medium.size

    def read(self, offset: int, length: int) -> bytes:
        return self._medium.read(offset, length)

    def write(self, offset: int, data: bytes) -> None:
        raise OSError(30, "read-only")

    def flush(self) -> None:
        pass

    def discard(self, offset: int, length: int) -> None:
        raise OSError(30, "read-only")

    def zero(self, offset: int, length: int) -> None:
        raise OSError(30, "read-only")


class CdRom(Disk):
    """A drive, with a disc in it (`medium`) or empty. `insert` and `remove` are its user's; the guest can eject."""

    device_type = 5
    removable = True
    product = b"VIRTUAL CD-ROM"

    def __init__(self, medium: Medium | None = None, *, serial: str = "") -> None:
        LogicalUnit.__init__(self, None, serial=serial, block_bytes=BLOCK)
        self.physical_bytes = BLOCK
        self.write_cache = False
        self.tray_open = False
        self._event = 0
        self._inside: Medium | None = ReadOnly(medium) if medium is not None else None
        self.medium = self._inside
        self.handlers |= dict.fromkeys((Op.READ_10, Op.READ_12, Op.READ_16), self._read)
        self.handlers |= {
            Op.READ_CAPACITY_10: self._read_capacity_10,
            Op.SERVICE_ACTION_IN_16: self._service_action_in,
            Op.READ_TOC: self._read_toc,
            Op.GET_CONFIGURATION: self._get_configuration,
            Op.GET_EVENT_STATUS: self._get_event_status,
            Op.SYNCHRONIZE_CACHE_10: self._synchronize,
            Op.VERIFY_10: self._verify,
        }

    # The tray.

    def insert(self, medium: Medium) -> None:
        """Put a disc in, in place of one that is there."""
        self._inside = ReadOnly(medium)
        self.load()

    def remove(self) -> None:
        """Take the disc out, whatever the guest prevents."""
        self._inside = None
        if self.medium is not None:
            self.medium = None
            self._event = MEDIA_REMOVAL
        self.differs()

    def load(self) -> None:
        changed = self._inside is not None and self.medium is not self._inside
        self.tray_open, self.medium = False, self._inside
        if changed:
            self._event = NEW_MEDIA
            self.attention(sense.MEDIUM_CHANGED)

    def eject(self) -> None:
        if self.prevented:
            raise CheckCondition(sense.REMOVAL_PREVENTED)
        if self.medium is not None:
            self._event = MEDIA_REMOVAL
        self.tray_open, self.medium = True, None

    # What it is.

    def more_vital_pages(self) -> dict[int, bytes]:
        return {}

    def mode_flags(self) -> int:
        return 0

    def mode_pages(self) -> dict[int, bytes]:
        # It reads CDs and DVDs, is a tray, and can lock and eject.
        capabilities = bytes([CAPABILITIES, 18, 0x08, 0, 0x00, 0, 0x29, 0, *bytes(12)])
        return {ERROR_RECOVERY: bytes([ERROR_RECOVERY, 10, *bytes(10)]), CAPABILITIES: capabilities}

    def default_mode_pages(self) -> dict[int, bytes]:
        return self.mode_pages()

    def changeable(self, page: int, content: bytes) -> bytes:
        return bytes(len(content) - 2)

    def default_modes(self) -> None:
        pass

    def _service_action_in(self, cdb: bytes, data: bytes) -> bytes:
        answer = bytearray(super()._service_action_in(cdb, data))
        if len(answer) > 14:
            answer[14] = 0
        return bytes(answer)

    # What is on it.

    def _read_toc(self, cdb: bytes, data: bytes) -> bytes:
        self.ready()
        minutes = bool(cdb[1] & 2)
        allocated = int.from_bytes(cdb[7:9], "big")
        form = cdb[2] & 15 or cdb[9] >> 6
        if form == 0:
            if cdb[6] > 1 and cdb[6] != LEAD_OUT:
                raise CheckCondition(invalid_field(6))
            tracks = [(1, 0)] if cdb[6] <= 1 else []
            tracks.append((LEAD_OUT, self.blocks))
        elif form == 1:
            tracks = [(1, 0)]
        else:
            raise CheckCondition(invalid_field(2))
        body = b"\1\1" + b"".join(
            bytes([0, DATA_TRACK, number, 0]) + _address(block, minutes) for number, block in tracks
        )
        return (len(body).to_bytes(2, "big") + body)[:allocated]

    def _profile(self) -> int:
        if self.medium is None:
            return 0
        return PROFILE_DVD if self.blocks > CD_BLOCKS else PROFILE_CD

    def _get_configuration(self, cdb: bytes, data: bytes) -> bytes:
        kind, first = cdb[1] & 3, int.from_bytes(cdb[2:4], "big")
        if kind == 3:
            raise CheckCondition(invalid_field(1))
        current = self._profile()
        profiles = b"".join(
            profile.to_bytes(2, "big") + bytes([int(profile == current), 0]) for profile in (PROFILE_DVD, PROFILE_CD)
        )
        features = [
            (0x0000, 0x03, profiles),
            (0x0001, 0x0B, (8).to_bytes(4, "big") + bytes([1, 0, 0, 0])),  # core: its interface is SCSI
            (0x0003, 0x03, bytes([0x29, 0, 0, 0])),  # removable medium: a tray that locks and ejects
        ]
        chosen = [
            number.to_bytes(2, "big") + bytes([version, len(content)]) + content
            for number, version, content in features
            if (number == first if kind == 2 else number >= first)
        ]
        body = bytes(2) + current.to_bytes(2, "big") + b"".join(chosen)
        return (len(body).to_bytes(4, "big") + body)[: int.from_bytes(cdb[7:9], "big")]

    def _get_event_status(self, cdb: bytes, data: bytes) -> bytes:
        allocated = int.from_bytes(cdb[7:9], "big")
        if not cdb[1] & 1:  # only by asking
            raise CheckCondition(invalid_field(1))
        if not cdb[4] & 1 << MEDIA_CLASS:
            return bytes([0, 2, 0x80, 1 << MEDIA_CLASS])[:allocated]
        present = (1 if self.tray_open else 0) | (2 if self.medium is not None else 0)
        event = bytes([self._event, present, 0, 0])
        self._event = 0
        return (bytes([0, 2 + len(event), MEDIA_CLASS, 1 << MEDIA_CLASS]) + event)[:allocated]


def _address(block: int, minutes: bool) -> bytes:
    """A block's address: a number, or minutes, seconds and frames."""
    if not minutes:
        return min(block, 0xFFFFFFFF).to_bytes(4, "big")
    seconds, frame = divmod(block + LEAD_IN_FRAMES, 75)
    minute, second = divmod(seconds, 60)
    return bytes([0, min(minute, 255), second, frame])
