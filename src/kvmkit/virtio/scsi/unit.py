"""A logical unit: what any kind of device answers. Source: SPC-4 (T10/1731-D)."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple, Protocol

from . import sense
from .sense import CheckCondition, Sense, invalid_field, invalid_parameter

VENDOR = b"KVMKIT  "
REVISION = b"1.0 "
SPC_4 = 6
MOST_ATTENTIONS = 8
"""A guest that never asks must not have us keep ever more of them."""
LUNS_PER_FORMAT = 256


class Op(IntEnum):
    """Operation codes, by the names of the standards."""

    TEST_UNIT_READY = 0x00
    REQUEST_SENSE = 0x03
    READ_6 = 0x08
    WRITE_6 = 0x0A
    INQUIRY = 0x12
    MODE_SELECT_6 = 0x15
    MODE_SENSE_6 = 0x1A
    START_STOP_UNIT = 0x1B
    PREVENT_ALLOW = 0x1E
    READ_CAPACITY_10 = 0x25
    READ_10 = 0x28
    WRITE_10 = 0x2A
    VERIFY_10 = 0x2F
    SYNCHRONIZE_CACHE_10 = 0x35
    WRITE_SAME_10 = 0x41
    UNMAP = 0x42
    READ_TOC = 0x43
    GET_CONFIGURATION = 0x46
    GET_EVENT_STATUS = 0x4A
    MODE_SELECT_10 = 0x55
    MODE_SENSE_10 = 0x5A
    READ_16 = 0x88
    WRITE_16 = 0x8A
    VERIFY_16 = 0x8F
    SYNCHRONIZE_CACHE_16 = 0x91
    WRITE_SAME_16 = 0x93
    SERVICE_ACTION_IN_16 = 0x9E
    REPORT_LUNS = 0xA0
    READ_12 = 0xA8
    WRITE_12 = 0xAA
    VERIFY_12 = 0xAF


NEVER_ATTENTION = (Op.INQUIRY, Op.REPORT_LUNS, Op.REQUEST_SENSE)
"""Commands that a unit attention does not keep from being carried out."""
CDB_BYTES = {0: 6, 1: 10, 2: 10, 4: 16, 5: 12}
"""How long a CDB is, by the group in its operation code's upper three bits."""


class Medium(Protocol):
    """What stands behind a unit. Offsets and lengths are bytes; each method raises OSError when the host fails."""

    @property
    def size(self) -> int: ...
    @property
    def readonly(self) -> bool: ...
    def read(self, offset: int, length: int) -> bytes: ...
    def write(self, offset: int, data: bytes) -> None: ...
    def flush(self) -> None: ...
    def discard(self, offset: int, length: int) -> None: ...
    def zero(self, offset: int, length: int) -> None: ...


class Answer(NamedTuple):
    """How a command ended: its status, what goes to the initiator, and sense data with CHECK CONDITION."""

    status: sense.Status = sense.Status.GOOD
    data: bytes = b""
    sense: bytes = b""


class Facts(NamedTuple):
    """What the compiled path has to know of a unit; see LogicalUnit.facts."""

    fd: int
    direct_fd: int
    align: int
    block_bytes: int
    blocks: int
    readonly: bool
    write_cache: bool
    optical: bool


Handler = Callable[[bytes, bytes], bytes]
"""(CDB, what came with it) to what goes back; raises CheckCondition."""


class LogicalUnit:
    """What disks and CD-ROMs have in common. Commands may come from several threads."""

    device_type = 0
    removable = False
    product = b"VIRTUAL DISK"
    write_cache = True

    def __init__(self, medium: Medium | None, *, serial: str = "", block_bytes: int = 512) -> None:
        self.medium = medium
        self.block_bytes = block_bytes
        self.serial = serial.encode("ascii", "replace")[:36]
        self.stopped = False
        self.prevented = False
        self.changed: Callable[[], None] | None = None
        """Told when what `facts` says may not be so any more."""
        self._attentions: deque[Sense] = deque([sense.POWER_ON], MOST_ATTENTIONS)
        self._lock = threading.Lock()
        self.handlers: dict[int, Handler] = {
            Op.TEST_UNIT_READY: self._test_unit_ready,
            Op.REQUEST_SENSE: self._request_sense,
            Op.INQUIRY: self._inquiry,
            Op.MODE_SENSE_6: self._mode_sense,
            Op.MODE_SENSE_10: self._mode_sense,
            Op.MODE_SELECT_6: self._mode_select,
            Op.MODE_SELECT_10: self._mode_select,
            Op.START_STOP_UNIT: self._start_stop,
            Op.PREVENT_ALLOW: self._prevent_allow,
        }

    # Carrying out a command.

    def execute(self, cdb: bytes, data: bytes = b"") -> Answer:
        """Carry out `cdb` (32 bytes at most; what is short is filled with zeros) with the initiator's `data`."""
        cdb = cdb.ljust(16, b"\0")
        try:
            handler = self.handlers.get(cdb[0])
            if handler is None:
                raise CheckCondition(sense.INVALID_OPCODE)
            length = CDB_BYTES.get(cdb[0] >> 5, 16)
            if cdb[length - 1] & 4:  # NACA: nobody here keeps a condition until it is cleared
                raise CheckCondition(invalid_field(length - 1))
            if cdb[0] not in NEVER_ATTENTION:
                attention = self.take_attention()
                if attention is not None:
                    raise CheckCondition(attention)
            return Answer(data=handler(cdb, data))
        except CheckCondition as check:
            return Answer(sense.Status.CHECK_CONDITION, sense=check.sense.fixed())

    def attention(self, what: Sense) -> None:
        """The next command is to learn of this."""
        with self._lock:
            if what not in self._attentions:
                self._attentions.append(what)
        self.differs()

    def differs(self) -> None:
        if self.changed is not None:
            self.changed()

    def facts(self) -> Facts | None:
        """For reading and writing without asking again; None while every command is to come to `execute`."""
        medium = self.medium
        if medium is None or self.stopped or self._attentions:
            return None
        file = getattr(medium, "file", None)
        if file is None or file.fd < 0:
            return None
        return Facts(
            file.fd,
            file.direct_fd,
            file.align,
            self.block_bytes,
            self.blocks,
            medium.readonly,
            self.write_cache,
            self.device_type == 5,
        )

    def take_attention(self) -> Sense | None:
        with self._lock:
            return self._attentions.popleft() if self._attentions else None

    def reset(self) -> None:
        """A logical unit reset: as at power-on, and the next command learns of it."""
        with self._lock:
            self._attentions.clear()
            self.stopped = self.prevented = False
        self.default_modes()
        self.attention(sense.WAS_RESET)

    def default_modes(self) -> None:
        """Forget what MODE SELECT set."""

    def ready(self) -> Medium:
        """The medium, or why there is none."""
        if self.medium is None:
            raise CheckCondition(sense.NO_MEDIUM)
        if self.stopped:
            raise CheckCondition(sense.STOPPED)
        return self.medium

    @property
    def blocks(self) -> int:
        return 0 if self.medium is None else self.medium.size // self.block_bytes

    # Commands.

    def _test_unit_ready(self, cdb: bytes, data: bytes) -> bytes:
        self.ready()
        return b""

    def _request_sense(self, cdb: bytes, data: bytes) -> bytes:
        found = self.take_attention()
        if found is None:
            found = sense.NO_MEDIUM if self.medium is None else sense.STOPPED if self.stopped else sense.NO_SENSE
        return (found.descriptor() if cdb[1] & 1 else found.fixed())[: cdb[4]]

    def _inquiry(self, cdb: bytes, data: bytes) -> bytes:
        allocated = int.from_bytes(cdb[3:5], "big")
        if cdb[1] & 2:
            raise CheckCondition(invalid_field(1))
        if not cdb[1] & 1:
            if cdb[2]:
                raise CheckCondition(invalid_field(2))
            return self.standard_inquiry()[:allocated]
        page = self.vital_pages().get(cdb[2])
        if page is None:
            raise CheckCondition(invalid_field(2))
        return (bytes([self.device_type, cdb[2]]) + len(page).to_bytes(2, "big") + page)[:allocated]

    def standard_inquiry(self) -> bytes:
        """Response data format 2; simple tasks can be queued."""
        head = bytes([self.device_type, 0x80 if self.removable else 0, SPC_4, 0x12, 31, 0, 0, 2])
        return head + VENDOR + self.product.ljust(16) + REVISION

    def vital_pages(self) -> dict[int, bytes]:
        """Vital product data, by page."""
        pages = {0x83: self._identification()}
        if self.serial:
            pages[0x80] = self.serial
        pages |= self.more_vital_pages()
        pages[0] = bytes(sorted([0, *pages]))
        return dict(sorted(pages.items()))

    def more_vital_pages(self) -> dict[int, bytes]:
        return {}

    def _identification(self) -> bytes:
        """Designators: the vendor's own, in ASCII."""
        name = VENDOR + self.product + b" " + (self.serial or b"0")
        return bytes([0x02, 0x01, 0, len(name)]) + name

    # Modes.

    def mode_pages(self) -> dict[int, bytes]:
        """The mode pages as they are, with their two bytes of header."""
        return {}

    def changeable(self, page: int, content: bytes) -> bytes:
        """A mask of what MODE SELECT can change in `content`, after the header."""
        return bytes(len(content) - 2)

    def default_mode_pages(self) -> dict[int, bytes]:
        return self.mode_pages()

    def set_mode(self, page: int, content: bytes) -> None:
        """Take a page that differs from the present one only in what can be changed."""

    def mode_flags(self) -> int:
        """The device-specific byte of the mode parameter header."""
        return 0

    def medium_type(self) -> int:
        return 0

    def _block_descriptor(self) -> bytes:
        return min(self.blocks, 0xFFFFFF).to_bytes(4, "big") + self.block_bytes.to_bytes(4, "big")

    def _mode_sense(self, cdb: bytes, data: bytes) -> bytes:
        short = cdb[0] == Op.MODE_SENSE_6
        allocated = cdb[4] if short else int.from_bytes(cdb[7:9], "big")
        control, page = cdb[2] >> 6, cdb[2] & 0x3F
        if control == 3:
            raise CheckCondition(sense.SAVING_UNSUPPORTED)
        if cdb[3] not in (0, 0xFF):
            raise CheckCondition(invalid_field(3))
        pages = self.default_mode_pages() if control == 2 else self.mode_pages()
        if page != 0x3F:
            if page not in pages:
                raise CheckCondition(invalid_field(2))
            pages = {page: pages[page]}
        elif cdb[3] == 0 or cdb[3] == 0xFF:
            pages = dict(sorted(pages.items()))
        if control == 1:
            pages = {number: content[:2] + self.changeable(number, content) for number, content in pages.items()}
        blocks = b"" if cdb[1] & 8 or self.device_type else self._block_descriptor()
        body = blocks + b"".join(pages.values())
        if short:
            head = bytes([len(body) + 3, self.medium_type(), self.mode_flags(), len(blocks)])
        else:
            head = (len(body) + 6).to_bytes(2, "big") + bytes([self.medium_type(), self.mode_flags(), 0, 0])
            head += len(blocks).to_bytes(2, "big")
        return (head + body)[:allocated]

    def _mode_select(self, cdb: bytes, data: bytes) -> bytes:
        short = cdb[0] == Op.MODE_SELECT_6
        length = cdb[4] if short else int.from_bytes(cdb[7:9], "big")
        if not cdb[1] & 0x10 or cdb[1] & 1:  # page format only, and nothing is saved
            raise CheckCondition(invalid_field(1))
        data = data[:length]
        head = 4 if short else 8
        if not length:
            return b""
        if len(data) < max(length, head):
            raise CheckCondition(sense.PARAMETER_LENGTH)
        blocks = data[3] if short else int.from_bytes(data[6:8], "big")
        if blocks not in (0, 8):
            raise CheckCondition(invalid_parameter(3 if short else 6))
        if blocks and data[head + 4 : head + 8] != self.block_bytes.to_bytes(4, "big"):
            raise CheckCondition(invalid_parameter(head + 4))
        self._select_pages(data, head + blocks)
        return b""

    def _select_pages(self, data: bytes, at: int) -> None:
        """Check every page before the first is taken."""
        pages = self.mode_pages()
        chosen = []
        while at < len(data):
            number = data[at] & 0x3F
            if data[at] & 0x40 or number not in pages:
                raise CheckCondition(invalid_parameter(at))
            present = pages[number]
            content = data[at : at + len(present)]
            if len(content) < len(present):
                raise CheckCondition(sense.PARAMETER_LENGTH)
            if content[1] != present[1]:
                raise CheckCondition(invalid_parameter(at + 1))
            mask = self.changeable(number, present)
            for i, (old, new, may) in enumerate(zip(present[2:], content[2:], mask, strict=True)):
                if (old ^ new) & ~may & 0xFF:
                    raise CheckCondition(invalid_parameter(at + 2 + i))
            chosen.append((number, content))
            at += len(present)
        for number, content in chosen:
            self.set_mode(number, content)

    # Start and stop.

    def _start_stop(self, cdb: bytes, data: bytes) -> bytes:
        if cdb[4] >> 4:  # power conditions
            raise CheckCondition(invalid_field(4))
        start, load = bool(cdb[4] & 1), bool(cdb[4] & 2)
        if load and not self.removable:
            raise CheckCondition(invalid_field(4))
        if load:
            self.load() if start else self.eject()
        if not load and not start and self.medium is not None and not cdb[4] & 4:
            self.flush(self.medium)
        self.stopped = not start and not load
        return b""

    def load(self) -> None:
        """Close the tray."""

    def eject(self) -> None:
        """Open it."""

    def flush(self, medium: Medium) -> None:
        if medium.readonly:
            return
        try:
            medium.flush()
        except OSError as error:
            raise CheckCondition(sense.WRITE_ERROR) from error

    def _prevent_allow(self, cdb: bytes, data: bytes) -> bytes:
        self.prevented = bool(cdb[4] & 1)
        return b""
