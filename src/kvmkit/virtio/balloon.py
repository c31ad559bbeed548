"""A balloon: memory that the guest gives back while it runs. Source: virtio 1.2, 5.5.

Pages come back in three ways. The driver fills its balloon up to a target; it reports pages as they become free; and,
asked by a hint, it shows all that are free now. Each is dropped from this process, so that the host has it; a guest
that takes it again finds zeros, in a page that the host finds then.
"""

import os
import struct
import threading

import cython
from cython.cimports.kvmkit.memory.atomics import ACQUIRE, RELEASE, load32, store32
from cython.cimports.kvmkit.memory.ram import ram_pointer
from cython.cimports.kvmkit.virtio.balloon import (
    DEFLATE,
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    HINT,
    HINT_DONE,
    HINT_FIRST,
    HINT_STOP,
    INFLATE,
    MADV_DONTNEED,
    MOST_NUMBERS,
    NOTHING,
    PAGE_BYTES,
    QUEUE,
    QUEUES,
    REPORT,
    STAT_BYTES,
    STATS,
    STATS_BYTES,
    TAGS,
    fallocate,
    madvise,
)
from cython.cimports.kvmkit.virtio.chain import chain_free, chain_new, chain_read, queue_break
from cython.cimports.kvmkit.virtio.lane import Lane
from cython.cimports.kvmkit.virtio.queue import queue_get, queue_release, queue_unget
from cython.cimports.kvmkit.virtio.ring import VirtQueue
from cython.cimports.libc.stdint import uint8_t, uint16_t, uint32_t, uint64_t
from cython.cimports.libc.stdlib import calloc, free
from cython.cimports.libc.string import memcpy, memset

from kvmkit.errors import BadInput

KIND: int = 5
DRIVER: str = "CONFIG_VIRTIO_BALLOON (virtio_balloon)"

# Feature bits, 5.5.3. Not PAGE_POISON: a driver that fills free pages with a pattern then does not report them.
STATS_VQ: int = 1 << 1
DEFLATE_ON_OOM: int = 1 << 2
FREE_PAGE_HINT: int = 1 << 3
PAGE_REPORTING: int = 1 << 5

_ACTUAL: int = 4  # places in the configuration space
_HINT: int = 8
_NAMES = (
    "swap_in_bytes",
    "swap_out_bytes",
    "major_faults",
    "minor_faults",
    "free_bytes",
    "total_bytes",
    "available_bytes",
    "caches_bytes",
    "huge_page_allocations",
    "huge_page_failures",
)
"""Statistics by their tags, 5.5.6.3."""


@cython.cclass
class Balloon(VirtioDevice):
    """`set_target` says how much memory the guest is to keep. Reserved huge pages are refused: what is given back of
    them, somebody else could take, and the guest could not have it again."""

    def __init__(self, memory, *, name: str = "balloon", log=None):
        if memory.fd >= 0 and os.fstatvfs(memory.fd).f_bsize > PAGE_BYTES:
            raise BadInput("--balloon: memory on reserved huge pages can't be given back: leave one of them away")
        self.chain = chain_new(QUEUE)
        self.held = chain_new(QUEUE)
        self.given = cython.cast(cython.pointer(uint8_t), calloc(memory.size // PAGE_BYTES // 8 + 1, 1))
        if self.chain == cython.NULL or self.held == cython.NULL or self.given == cython.NULL:
            raise MemoryError
        self.hint = HINT_DONE
        self.writing = threading.Lock()
        VirtioDevice.__init__(
            self, memory, KIND, [QUEUE] * QUEUES, name=name, driver=DRIVER,
            features=STATS_VQ | DEFLATE_ON_OOM | FREE_PAGE_HINT | PAGE_REPORTING,
            config=struct.pack("<IIII", 0, 0, HINT_DONE, 0), lanes=[list(range(QUEUES))], log=log,
        )  # fmt: skip
        self._assign(0)

    def __dealloc__(self):
        chain_free(self.chain)
        chain_free(self.held)
        free(self.given)

    def _assign(self, features: int) -> None:
        """Queues of features that were not agreed on do not exist, and those behind them move up."""
        there = [INFLATE, DEFLATE]
        for feature, role in ((STATS_VQ, STATS), (FREE_PAGE_HINT, HINT), (PAGE_REPORTING, REPORT)):
            if features & feature:
                there.append(role)
        for i in range(QUEUES):
            self.roles[i] = there[i] if i < len(there) else NOTHING

    def accepts(self, features: int) -> bool:
        self._assign(features)
        return True

    def config_written(self, offset: int, size: int, value: int) -> None:
        if offset == _ACTUAL and size == 4:
            self._put(_ACTUAL, value & 0xFFFFFFFF, interrupt=False)

    def stopped(self) -> None:
        self.holding = False
        self.known = 0
        self.hinting = False
        self.hint = HINT_DONE
        self.given_pages = 0
        memset(self.given, 0, self.memory.size // PAGE_BYTES // 8 + 1)
        self.set_config(self.config[:4] + struct.pack("<III", 0, HINT_DONE, 0), interrupt=False)

    # For the machine.

    def set_target(self, size: int) -> None:
        """Have the guest keep `size` bytes, as far as it can spare the rest. BadInput for more than it has."""
        if not 0 < size <= self.memory.size:
            raise BadInput(f"{self.name}: a target of {size} bytes: the guest has {self.memory.size}")
        self._put(0, (self.memory.size - size) // PAGE_BYTES)

    @property
    def target(self) -> int:
        """Bytes that the guest is to keep."""
        return self.memory.size - struct.unpack_from("<I", self.config)[0] * PAGE_BYTES

    @property
    def given_bytes(self) -> int:
        """What is in the balloon now."""
        return self.given_pages * PAGE_BYTES

    def stats(self) -> dict:
        """What the guest said of its memory last; empty: nothing yet."""
        return {name: self.values[tag] for tag, name in enumerate(_NAMES) if self.known >> tag & 1}

    def ask_stats(self) -> None:
        """Have the guest say it anew; `stats` has it some milliseconds later."""
        store32(cython.address(self.wants_stats), 1, RELEASE)
        os.eventfd_write(self.queues[0].doorbell, 1)

    def reclaim(self) -> bool:
        """Have the guest show all its free pages, once, and drop them. False: its driver can't."""
        if not self.driver_ok or not self.accepted & FREE_PAGE_HINT:
            return False
        with self.lock:
            self.hint = self.hint + 1 if HINT_FIRST <= self.hint < 0xFFFFFFFF else HINT_FIRST
            self._put(_HINT, self.hint)
        return True

    def _put(self, offset: int, value: int, *, interrupt: bool = True) -> None:
        with self.writing:
            new = self.config[:offset] + struct.pack("<I", value) + self.config[offset + 4 :]
            self.set_config(new, interrupt=interrupt)

    # On the lane's thread.

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def look(self, lane: Lane) -> cython.bint:
        if self.holding and load32(cython.address(self.wants_stats), ACQUIRE):
            i: cython.int
            store32(cython.address(self.wants_stats), 0, RELEASE)
            for i in range(QUEUES):
                if self.roles[i] == STATS:
                    self.holding = False
                    queue_release(lane.queues[i], self.held, 0)
                    return True
        return False

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def serve(self, lane: Lane, q: cython.pointer(VirtQueue)) -> cython.void:
        role: cython.int = self.roles[q.index]
        if role == STATS:
            if self.holding or queue_get(q, self.held) <= 0 or not self.take_stats(q):
                q.wanted = False
            return
        if role == NOTHING or queue_get(q, self.chain) <= 0:
            q.wanted = False
            return
        if role in (INFLATE, DEFLATE):
            if not self.pages(q, role == INFLATE):
                return
        elif role == REPORT:
            self.free_pages(q)
        else:
            self.take_hint(q)
        queue_release(q, self.chain, 0)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def drain(self, lane: Lane) -> cython.void:
        i: cython.int
        for i in range(QUEUES):
            if self.holding and self.roles[i] == STATS:
                self.holding = False
                queue_unget(lane.queues[i], self.held)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def pages(self, q: cython.pointer(VirtQueue), inflate: cython.bint) -> cython.bint:
        """Page numbers, that the driver gives or takes back. False: the queue is broken."""
        numbers: uint32_t[256]
        length: uint64_t = self.chain.read_bytes
        if length % 4 or length > MOST_NUMBERS:
            return queue_break(q, "page numbers that are cut off, or too many")
        at: uint64_t = 0
        start: uint64_t = 0  # pages that lie side by side go back at once
        end: uint64_t = 0
        while at < length:
            part: uint64_t = chain_read(self.chain, at, numbers, min(length - at, cython.sizeof(numbers)))
            at += part
            i: uint64_t
            for i in range(part // 4):
                address: uint64_t = cython.cast(uint64_t, numbers[i]) * PAGE_BYTES
                if not self.is_ram(address, PAGE_BYTES):
                    return queue_break(q, "a page outside of memory")
                if not self.mark(address, inflate) or not inflate:
                    continue
                if address == end and end != q.ram.low:
                    end += PAGE_BYTES
                elif address + PAGE_BYTES == start and start != cython.cast(uint64_t, 1) << 32:
                    start = address
                else:
                    self.discard(q, start, end - start)
                    start, end = address, address + PAGE_BYTES
        self.discard(q, start, end - start)
        return True

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def is_ram(self, address: uint64_t, length: uint64_t) -> cython.bint:
        """Whether all of it is RAM: files that stand behind it (pmem) are not the balloon's to give, nor counted."""
        host: cython.pointer(uint8_t) = ram_pointer(cython.address(self.memory.ram), address, length)
        if host == cython.NULL:
            return False
        return cython.cast(uint64_t, host - self.memory.ram.base) + length <= self.memory.size

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def mark(self, address: uint64_t, inflate: cython.bint) -> cython.bint:
        """Note a page as given, or not; False: it was so before."""
        page: uint64_t = (ram_pointer(cython.address(self.memory.ram), address, 1) - self.memory.ram.base) // PAGE_BYTES
        bit: uint8_t = cython.cast(uint8_t, 1 << (page % 8))
        if ((self.given[page // 8] & bit) != 0) == inflate:
            return False
        self.given[page // 8] ^= bit
        if inflate:
            self.given_pages += 1
        else:
            self.given_pages -= 1
        return True

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def discard(self, q: cython.pointer(VirtQueue), address: uint64_t, length: uint64_t) -> cython.void:
        """Give pages back to the host. They are in one stretch of RAM."""
        if length == 0:
            return
        host: cython.pointer(uint8_t) = ram_pointer(q.ram, address, length)
        if host == cython.NULL:
            return
        if self.memory.fd >= 0:  # of a file: for all who share it
            fallocate(self.memory.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, host - q.ram.base, length)
        else:
            madvise(host, length, MADV_DONTNEED)
        if q.ram.written != cython.NULL:  # what was translated from there is no more
            q.ram.written(q.ram.engine, address, length)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def free_pages(self, q: cython.pointer(VirtQueue)) -> cython.void:
        """The chain's buffers are free memory, until it comes back."""
        i: uint16_t
        for i in range(self.chain.readable, self.chain.count):
            start: uint64_t = (self.chain.address[i] + PAGE_BYTES - 1) & ~cython.cast(uint64_t, PAGE_BYTES - 1)
            end: uint64_t = (self.chain.address[i] + self.chain.iov[i].iov_len) & ~cython.cast(uint64_t, PAGE_BYTES - 1)
            if end > start and self.is_ram(start, end - start):
                self.discard(q, start, end - start)
                self.returned_bytes += end - start

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def take_hint(self, q: cython.pointer(VirtQueue)) -> cython.void:
        """Which request the driver answers, and its free pages, which it keeps until it is told that we are done."""
        if self.chain.read_bytes == 4:
            which: uint32_t
            chain_read(self.chain, 0, cython.address(which), 4)
            was: cython.bint = self.hinting
            self.hinting = which >= HINT_FIRST and which == self.hint
            if was and which == HINT_STOP:
                with cython.gil:
                    self._put(_HINT, HINT_DONE)
        if self.hinting:
            self.free_pages(q)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def take_stats(self, q: cython.pointer(VirtQueue)) -> cython.bint:
        """Read the driver's statistics, and keep its buffer until new ones are wanted. False: the queue is broken."""
        data: uint8_t[STATS_BYTES]
        length: uint64_t = min(self.held.read_bytes, cython.cast(uint64_t, STATS_BYTES))
        chain_read(self.held, 0, data, length)
        i: uint64_t
        for i in range(length // STAT_BYTES):
            tag: uint16_t
            memcpy(cython.address(tag), data + i * STAT_BYTES, 2)
            if tag < TAGS:
                memcpy(cython.address(self.values[tag]), data + i * STAT_BYTES + 2, 8)
                self.known |= cython.cast(uint32_t, 1) << tag
        self.stats_came += 1
        self.holding = True
        return True
