"""virtio-scsi: commands, task management and events for a target's units. Source: virtio 1.2, 5.6.

One lane serves every queue. What moves data is compiled (path.py) and may be in flight; a command that is carried out
here runs alone, and a task management function ends all that is in flight before it does its work: it ends as it would
have, and so there is never a task left to abort.
"""

from __future__ import annotations

import os
import struct
from collections import deque
from collections.abc import Callable

from kvmkit.memory import GuestMemory
from kvmkit.virtio.queue import Queue

from .disk import MOST_TRANSFER
from .path import ScsiPath
from .sense import Status
from .target import MOST_TARGETS, MOST_UNITS, Targets
from .unit import LogicalUnit

KIND = 8
DRIVER = "CONFIG_SCSI_VIRTIO (virtio_scsi)"
INOUT, HOTPLUG, CHANGE = 1, 2, 4
CONTROL, EVENT, REQUEST = 0, 1, 2
QUEUE = 128
SENSE_BYTES, CDB_BYTES = 96, 32
MOST_BYTES = 252
"""The largest CDB, and the most sense data, that a driver can ask for."""
SENSE_AT, CDB_AT = 20, 24
MOST_EVENTS = 16

# Responses, 5.6.6.1 and 5.6.6.2.
OK, OVERRUN, BAD_TARGET, FAILURE = 0, 1, 3, 9
FUNCTION_COMPLETE, FUNCTION_SUCCEEDED, FUNCTION_REJECTED, INCORRECT_LUN = 0, 10, 11, 12
TMF, QUERY, SUBSCRIBE = 0, 1, 2
ABORT_TASK, ABORT_TASK_SET, CLEAR_TASK_SET, NEXUS_RESET, UNIT_RESET, QUERY_TASK, QUERY_TASK_SET = 0, 1, 3, 4, 5, 6, 7

# Events, 5.6.6.3.
EVENTS_MISSED = 0x80000000
TRANSPORT_RESET, PARAMETER_CHANGE = 1, 3
RESCAN, REMOVED = 1, 2
CAPACITY_CHANGED = 0x2A | 0x09 << 8
EVENT_BYTES = 16


class Scsi(ScsiPath):
    """A host adapter with `targets` and so many request `queues`. `close` closes what `owned` gives, too."""

    def __init__(
        self,
        memory: GuestMemory,
        targets: Targets,
        *,
        queues: int = 1,
        name: str = "scsi",
        log: Callable[[str], None] | None = None,
        owned: tuple[Callable[[], None], ...] = (),
        uring: bool = True,
    ) -> None:
        self._owned = owned
        self._requests = queues
        self._sense_bytes, self._cdb_bytes = SENSE_BYTES, CDB_BYTES
        self._events: deque[bytes] = deque()
        self._missed = False
        super().__init__(
            memory,
            targets,
            MOST_TRANSFER,
            uring=uring,
            kind=KIND,
            queues=[QUEUE] * (REQUEST + queues),
            name=name,
            driver=DRIVER,
            features=INOUT | HOTPLUG | CHANGE,
            config=self._config(),
            lanes=[list(range(REQUEST + queues))],
            log=log,
        )
        self.set_sizes(self._sense_bytes, self._cdb_bytes)
        for address, unit in targets.all().items():
            self._adopt(*address, unit)

    def _adopt(self, target: int, lun: int, unit: LogicalUnit) -> None:
        """Have the unit's changes told to the compiled path."""
        unit.changed = lambda: self.cool(target, lun)
        self.heat(target, lun)

    def _config(self) -> bytes:
        most = MOST_TRANSFER // 512
        numbers = (self._requests, QUEUE - 2, most, QUEUE, EVENT_BYTES, self._sense_bytes, self._cdb_bytes)
        return struct.pack("<7IHHI", *numbers, 0, MOST_TARGETS - 1, MOST_UNITS - 1)

    def config_written(self, offset: int, size: int, value: int) -> None:
        if size != 4 or not 16 <= value <= MOST_BYTES:
            return
        if offset == SENSE_AT:
            self._sense_bytes = value
        elif offset == CDB_AT:
            self._cdb_bytes = value
        self.set_sizes(self._sense_bytes, self._cdb_bytes)
        self.set_config(self._config(), interrupt=False)

    def stopped(self) -> None:
        self._sense_bytes, self._cdb_bytes = SENSE_BYTES, CDB_BYTES
        self.set_sizes(SENSE_BYTES, CDB_BYTES)
        self.set_config(self._config(), interrupt=False)
        self._events.clear()

    def close(self) -> None:
        super().close()
        owned, self._owned = self._owned, ()
        for close in owned:
            close()

    # The lane's thread.

    def handle(self, queue: Queue) -> None:
        if queue.index == EVENT:
            self._send_events(queue)
            return
        while (got := queue.get()) is not None:
            queue.release(self._control(got[0]))

    def command(self, data: bytes, room: int) -> bytes:
        """A command: its CDB and data, to a response of fixed size and data."""
        head = 19 + self._cdb_bytes
        space = room - 12 - self._sense_bytes
        if len(data) < head or space < 0:
            return self._response(FAILURE)
        address = decode_lun(data[:8])
        if address is None:
            return self._response(BAD_TARGET)
        answer = self.targets.execute(*address, data[19:head], data[head:])
        if answer is None:
            return self._response(BAD_TARGET)
        if len(answer.data) > space:
            return self._response(OVERRUN)
        left = space - len(answer.data)
        return self._response(OK, answer.status, answer.sense, left) + answer.data

    def _response(self, response: int, status: Status = Status.GOOD, sense: bytes = b"", left: int = 0) -> bytes:
        sense = sense[: self._sense_bytes]
        head = struct.pack("<IIHBB", len(sense), left, 0, status, response)
        return head + sense.ljust(self._sense_bytes, b"\0")

    def _control(self, data: bytes) -> bytes:
        kind = int.from_bytes(data[:4], "little")
        if kind == TMF and len(data) >= 24:
            return bytes(
                [self._manage(int.from_bytes(data[4:8], "little"), data[8:16], int.from_bytes(data[16:24], "big"))]
            )
        if kind in (QUERY, SUBSCRIBE) and len(data) >= 16:
            return bytes([0, 0, 0, 0, OK if self._unit(data[4:12]) else INCORRECT_LUN])  # no such events are offered
        return bytes([FUNCTION_REJECTED])

    def _unit(self, lun: bytes) -> LogicalUnit | None:
        address = decode_lun(lun)
        return None if address is None else self.targets.find(*address)

    def _manage(self, function: int, lun: bytes, tag: int) -> int:
        """Task management, SAM-5, 7."""
        address = decode_lun(lun)
        if address is None or not self.targets.has(address[0]):
            return BAD_TARGET
        if function in (QUERY_TASK, QUERY_TASK_SET):
            found = self.in_flight(*address, tag if function == QUERY_TASK else None)
            return FUNCTION_SUCCEEDED if found else FUNCTION_COMPLETE
        if function not in (ABORT_TASK, ABORT_TASK_SET, CLEAR_TASK_SET, NEXUS_RESET, UNIT_RESET):
            return FUNCTION_REJECTED
        # Also what is offered and not taken yet: it is not to begin after this has ended.
        self.finish_all()
        if function == NEXUS_RESET:
            for each in self.targets.of(address[0]):
                each.reset()
            return FUNCTION_COMPLETE
        unit = self.targets.find(*address)
        if unit is None:
            return INCORRECT_LUN
        if function == UNIT_RESET:
            unit.reset()
        return FUNCTION_COMPLETE

    # Events.

    def plug(self, target: int, lun: int, unit: LogicalUnit) -> None:
        """Add a unit while the guest runs. Raises BadInput when the address is taken."""

        def add() -> None:
            self.targets.add(target, lun, unit)
            self._adopt(target, lun, unit)

        self.still(add)
        self._tell(TRANSPORT_RESET, target, lun, RESCAN, HOTPLUG)

    def unplug(self, target: int, lun: int) -> LogicalUnit:
        """Take a unit away; it is the caller's. Raises BadInput when there is none."""

        def remove() -> LogicalUnit:
            unit = self.targets.remove(target, lun)
            unit.changed = None
            self.limit_unit(target, lun, 0, 0, 0, 0)
            self.heat(target, lun)
            return unit

        unit = self.still(remove)
        self._tell(TRANSPORT_RESET, target, lun, REMOVED, HOTPLUG)
        return unit

    def set_unit_limit(
        self,
        target: int,
        lun: int,
        *,
        bytes: float = 0,
        operations: float = 0,
        byte_burst: float = 0,
        operation_burst: float = 0,
    ) -> None:
        """As VirtioDevice.set_limit, for one unit."""
        bursts = byte_burst or bytes / 10, operation_burst or operations / 10
        self.still(lambda: self.limit_unit(target, lun, bytes, bursts[0], operations, bursts[1]))

    def resized(self, target: int, lun: int) -> None:
        """A unit's medium has another size."""
        self._tell(PARAMETER_CHANGE, target, lun, CAPACITY_CHANGED, CHANGE)

    def _tell(self, event: int, target: int, lun: int, reason: int, feature: int) -> None:
        if not self.accepted & feature:
            return
        if len(self._events) >= MOST_EVENTS:
            self._missed = True
            return
        self._events.append(struct.pack("<I8sI", event, encode(target, lun), reason))
        os.eventfd_write(self.queues[EVENT].doorbell, 1)

    def _send_events(self, queue: Queue) -> None:
        while self._events and queue.get() is not None:
            event = self._events.popleft()
            if self._missed:
                event = (int.from_bytes(event[:4], "little") | EVENTS_MISSED).to_bytes(4, "little") + event[4:]
                self._missed = False
            queue.release(event)
        if not self._events:
            queue.rest()  # the driver's buffers stay until there is something to say


def decode_lun(lun: bytes) -> tuple[int, int] | None:
    """(target, LUN) of the eight bytes of 5.6.6.1; None: no such form."""
    if lun[0] != 1 or lun[2] >> 6 > 1:
        return None
    return lun[1], int.from_bytes(lun[2:4], "big") & 0x3FFF


def encode(target: int, lun: int) -> bytes:
    """The inverse."""
    return bytes([1, target]) + (0x4000 | lun).to_bytes(2, "big") + bytes(4)
