"""A keyboard or a tablet, whose events come from `inject`. Source: virtio 1.2, 5.8, and <linux/input-event-codes.h>.

keyboard.inject(press("shift", "a"))      # both go down in turn, and up again
tablet.inject(move(0.5, 0.5))             # the middle
"""

from __future__ import annotations

import os
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from kvmkit.errors import BadInput
from kvmkit.memory import GuestMemory

from .device import DRIVER_OK, VirtioDevice
from .queue import Queue

KIND = 18
DRIVER = "CONFIG_VIRTIO_INPUT (virtio_input) and CONFIG_INPUT_EVDEV (evdev)"
EVENTS, STATUS = 0, 1
QUEUE = 64
MOST_PENDING = 1024
"""Events that nobody has taken: a guest without a driver must not make us keep ever more."""

# What the driver asks the configuration space for, 5.8.4.
ID_NAME, ID_SERIAL, ID_DEVIDS, PROP_BITS, EV_BITS, ABS_INFO = 0x01, 0x02, 0x03, 0x10, 0x11, 0x12
CONFIG_BYTES, DATA_AT = 136, 8

EV_SYN, EV_KEY, EV_REL, EV_ABS, EV_LED, EV_REP = 0x00, 0x01, 0x02, 0x03, 0x11, 0x14
SYN_REPORT = 0
ABS_X, ABS_Y, REL_WHEEL = 0, 1, 8
BUTTONS = {"left": 0x110, "right": 0x111, "middle": 0x112}
LARGEST = 32767
"""The right and lower edge of a tablet."""
BUS_VIRTUAL = 6

Event: TypeAlias = "tuple[int, int, int]"
"""(type, code, value)."""

_ROWS = (
    (1, "esc 1 2 3 4 5 6 7 8 9 0 minus equal backspace tab q w e r t y u i o p leftbrace rightbrace enter leftctrl"),
    (30, "a s d f g h j k l semicolon apostrophe grave leftshift backslash z x c v b n m comma dot slash rightshift"),
    (55, "kpasterisk leftalt space capslock f1 f2 f3 f4 f5 f6 f7 f8 f9 f10 numlock scrolllock"),
    (71, "kp7 kp8 kp9 kpminus kp4 kp5 kp6 kpplus kp1 kp2 kp3 kp0 kpdot"),
    (87, "f11 f12"),
    (96, "kpenter rightctrl kpslash sysrq rightalt"),
    (102, "home up pageup left right end down pagedown insert delete"),
    (113, "mute volumedown volumeup power"),
    (125, "leftmeta rightmeta compose"),
)
KEYS = {name: first + place for first, names in _ROWS for place, name in enumerate(names.split())}
KEYS |= {"shift": KEYS["leftshift"], "ctrl": KEYS["leftctrl"], "alt": KEYS["leftalt"]}

_PLAIN_NAMES = "minus equal leftbrace rightbrace backslash semicolon apostrophe grave comma dot slash space enter tab"
_PLAIN = dict(zip("-=[]\\;'`,./ \n\t", _PLAIN_NAMES.split(), strict=True))
_SHIFTED = dict(zip('!@#$%^&*()_+{}|:"~<>?', "1234567890-=[]\\;'`,./", strict=True))


def key(name: str) -> int:
    """A key's code. BadInput for a name that no key has."""
    code = KEYS.get(name.lower().removeprefix("key_"))
    if code is None:
        raise BadInput(
            f"no key {name!r}; they are a to z, 0 to 9, f1 to f12, enter, esc, tab, space, shift, ctrl, up, ..."
        )
    return code


def press(*names: str) -> list[Event]:
    """The keys go down in turn, and up in the other order."""
    codes = [key(name) for name in names]
    down = [event for code in codes for event in ((EV_KEY, code, 1), (EV_SYN, SYN_REPORT, 0))]
    return down + [event for code in reversed(codes) for event in ((EV_KEY, code, 0), (EV_SYN, SYN_REPORT, 0))]


def typed(text: str) -> list[Event]:
    """The keys of a US keyboard that write `text`. BadInput for what it can't."""
    found: list[Event] = []
    for character in text:
        plain = _SHIFTED.get(character, character.lower())
        name = _PLAIN.get(plain, plain)
        if name not in KEYS:
            raise BadInput(f"a keyboard has no key for {character!r}")
        found += press("shift", name) if plain != character else press(name)
    return found


def move(x: float, y: float) -> list[Event]:
    """A tablet's pointer, from 0 (left, top) to 1."""
    if not (0 <= x <= 1 and 0 <= y <= 1):
        raise BadInput(f"a place of {x:g}, {y:g}: both are from 0 to 1")
    return [(EV_ABS, ABS_X, round(x * LARGEST)), (EV_ABS, ABS_Y, round(y * LARGEST)), (EV_SYN, SYN_REPORT, 0)]


def button(name: str, down: bool) -> list[Event]:
    """A tablet's button, left, right or middle."""
    if name not in BUTTONS:
        raise BadInput(f"no button {name!r}: there are left, right and middle")
    return [(EV_KEY, BUTTONS[name], int(down)), (EV_SYN, SYN_REPORT, 0)]


def _bits(codes: Iterable[int]) -> bytes:
    number = 0
    for code in codes:
        number |= 1 << code
    return number.to_bytes((number.bit_length() + 7) // 8, "little")


class Input(VirtioDevice):
    """A "keyboard" or a "tablet"."""

    def __init__(self, memory: GuestMemory, what: str, *, log: Callable[[str], None] | None = None) -> None:
        if what not in ("keyboard", "tablet"):
            raise BadInput(f"--input {what}: there are keyboard and tablet")
        self.what = what
        self._pending: deque[Event] = deque()
        self._lock = threading.Lock()
        self._answers = self._make_answers(what)
        self._select = self._subselect = 0
        super().__init__(
            memory,
            KIND,
            [QUEUE, QUEUE],
            name=what,
            driver=DRIVER,
            config=bytes(CONFIG_BYTES),
            lanes=[[EVENTS, STATUS]],
            log=log,
        )

    @staticmethod
    def _make_answers(what: str) -> dict[tuple[int, int], bytes]:
        answers = {
            (ID_NAME, 0): f"kvmkit {what}".encode(),
            (ID_SERIAL, 0): b"0",
            (ID_DEVIDS, 0): struct.pack("<4H", BUS_VIRTUAL, 0x1AF4, 1 + (what == "tablet"), 1),
        }
        if what == "keyboard":
            answers[EV_BITS, EV_KEY] = _bits(KEYS.values())
            answers[EV_BITS, EV_REP] = _bits([0, 1])
            answers[EV_BITS, EV_LED] = _bits([0, 1, 2])
        else:
            answers[EV_BITS, EV_KEY] = _bits(BUTTONS.values())
            answers[EV_BITS, EV_REL] = _bits([REL_WHEEL])
            answers[EV_BITS, EV_ABS] = _bits([ABS_X, ABS_Y])
            for axis in (ABS_X, ABS_Y):
                answers[ABS_INFO, axis] = struct.pack("<5I", 0, LARGEST, 0, 0, 0)
        return answers

    def config_written(self, offset: int, size: int, value: int) -> None:
        data = bytearray((self._select, self._subselect))
        if offset + size > len(data):
            return
        data[offset : offset + size] = value.to_bytes(size, "little")
        self._select, self._subselect = data
        answer = self._answers.get((self._select, self._subselect), b"")
        config = bytes((self._select, self._subselect, len(answer))).ljust(DATA_AT, b"\0") + answer
        self.set_config(config.ljust(CONFIG_BYTES, b"\0"), interrupt=False)

    def stopped(self) -> None:
        self._select = self._subselect = 0
        with self._lock:
            self._pending.clear()

    def inject(self, events: Sequence[Event]) -> bool:
        """Have the guest see `events`, all or none: False, where it takes none (no driver, or too many wait)."""
        for kind, code, value in events:
            if not (0 <= kind <= 0xFFFF and 0 <= code <= 0xFFFF and -(1 << 31) <= value < 1 << 31):
                raise BadInput(f"no input event: {kind}, {code}, {value}")
        with self._lock:
            if not self.status & DRIVER_OK or len(self._pending) + len(events) > MOST_PENDING:
                return False
            self._pending.extend(events)
            if not self.closed:
                os.eventfd_write(self.queues[EVENTS].doorbell, 1)
        return True

    @property
    def waiting(self) -> int:
        """Events that the guest has not taken."""
        return len(self._pending)

    def handle(self, queue: Queue) -> None:
        if queue.index == STATUS:  # LEDs, which nobody sees
            while queue.get() is not None:
                queue.release()
            return
        while True:
            with self._lock:
                if not self._pending:
                    queue.rest()
                    return
                if queue.get() is None:
                    return
                kind, code, value = self._pending.popleft()
            queue.release(struct.pack("<HHi", kind, code, value))
