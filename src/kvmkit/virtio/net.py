"""A network card. Source: virtio 1.2, 5.1.

Each pair of queues has a lane, which carries frames both ways between the rings and a backend (kvmkit.net). Nothing is
received from a backend while the guest has no buffers: what waits then waits with the sender. The control queue is
served by the first lane, in Python.
"""

import os
import struct

import cython
from cython.cimports.kvmkit.accel.tcg.threads import monotonic
from cython.cimports.kvmkit.net.backend import FULL, GONE, MOST_FRAME, SENT, Backend
from cython.cimports.kvmkit.net.filter import FrameFilter, filter_wants
from cython.cimports.kvmkit.net.policy import NOTHING_AT_ALL, FramePolicy, policy_allows
from cython.cimports.kvmkit.virtio.chain import chain_free, chain_new, chain_read, chain_write, queue_break
from cython.cimports.kvmkit.virtio.lane import POLLIN, POLLOUT, Lane
from cython.cimports.kvmkit.virtio.limit import limit_set, limit_take, limit_wait
from cython.cimports.kvmkit.virtio.net import (
    CONTROL_QUEUE,
    GSO_ECN,
    GSO_NONE,
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP,
    GSO_UDP_L4,
    HEAD,
    HEADER_BYTES,
    MOST_MERGED,
    MOST_PAIRS,
    NEEDS_CSUM,
    QUEUE,
    ROUND,
    Header,
    Pair,
)
from cython.cimports.kvmkit.virtio.queue import (
    queue_get,
    queue_has,
    queue_release,
    queue_release_together,
    queue_unget,
)
from cython.cimports.kvmkit.virtio.ring import VirtQueue
from cython.cimports.libc.stdint import int64_t, uint8_t, uint32_t, uint64_t
from cython.cimports.libc.stdlib import calloc, free
from cython.cimports.posix.uio import iovec

from kvmkit.errors import BadInput
from kvmkit.net.backend import (
    OFFLOAD_CSUM,
    OFFLOAD_ECN,
    OFFLOAD_TSO4,
    OFFLOAD_TSO6,
    OFFLOAD_UFO,
    OFFLOAD_USO4,
    OFFLOAD_USO6,
)

KIND: int = 1
DRIVER: str = "CONFIG_VIRTIO_NET (virtio_net)"

# Feature bits, 5.1.3.
CSUM: int = 1 << 0
GUEST_CSUM: int = 1 << 1
CTRL_GUEST_OFFLOADS: int = 1 << 2
MTU: int = 1 << 3
MAC: int = 1 << 5
GUEST_TSO4: int = 1 << 7
GUEST_TSO6: int = 1 << 8
GUEST_ECN: int = 1 << 9
GUEST_UFO: int = 1 << 10
HOST_TSO4: int = 1 << 11
HOST_TSO6: int = 1 << 12
HOST_ECN: int = 1 << 13
HOST_UFO: int = 1 << 14
MRG_RXBUF: int = 1 << 15
STATUS: int = 1 << 16
CTRL_VQ: int = 1 << 17
CTRL_RX: int = 1 << 18
CTRL_VLAN: int = 1 << 19
CTRL_RX_EXTRA: int = 1 << 20
GUEST_ANNOUNCE: int = 1 << 21
MQ: int = 1 << 22
CTRL_MAC_ADDR: int = 1 << 23
# Of virtio 1.3: UDP that the network cuts into datagrams of a size.
GUEST_USO4: int = 1 << 54
GUEST_USO6: int = 1 << 55
HOST_USO: int = 1 << 56

_LINK_UP: int = 1
_ANNOUNCE: int = 2

_NEEDS: tuple = (  # 5.1.3.1: (features, what at least one of has to be there)
    (GUEST_TSO4 | GUEST_TSO6 | GUEST_UFO | GUEST_USO4 | GUEST_USO6, GUEST_CSUM),
    (GUEST_ECN, GUEST_TSO4 | GUEST_TSO6),
    (HOST_TSO4 | HOST_TSO6 | HOST_UFO | HOST_USO, CSUM),
    (HOST_ECN, HOST_TSO4 | HOST_TSO6),
    (CTRL_RX | CTRL_VLAN | GUEST_ANNOUNCE | MQ | CTRL_MAC_ADDR | CTRL_GUEST_OFFLOADS, CTRL_VQ),
    (CTRL_RX_EXTRA, CTRL_RX),
)
_GUEST_OFFLOADS: tuple = (
    (GUEST_CSUM, OFFLOAD_CSUM),
    (GUEST_TSO4, OFFLOAD_TSO4),
    (GUEST_TSO6, OFFLOAD_TSO6),
    (GUEST_ECN, OFFLOAD_ECN),
    (GUEST_UFO, OFFLOAD_UFO),
    (GUEST_USO4, OFFLOAD_USO4),
    (GUEST_USO6, OFFLOAD_USO6),
)
_HOST_OFFLOADS: tuple = (
    (CSUM, OFFLOAD_CSUM),
    (HOST_TSO4, OFFLOAD_TSO4),
    (HOST_TSO6, OFFLOAD_TSO6),
    (HOST_ECN, OFFLOAD_ECN),
    (HOST_UFO, OFFLOAD_UFO),
    (HOST_USO, OFFLOAD_USO4),
)


@cython.cclass
class Net(VirtioDevice):
    """`backend` is a kvmkit.net.backend.Backend, which this closes. `mac`: 6 bytes. `mtu` 0: the guest is told none.

    As many queue pairs as the backend has. `lost` is called in a lane when the backend's other end has gone.
    """

    def __init__(self, memory, backend: Backend, mac: bytes, *, name: str = "net", mtu: int = 0, log=None, lost=None):
        if len(mac) != 6 or mac[0] & 1 or not any(mac):
            raise BadInput(f"{name}: {mac.hex(':')} is no address of a network card")
        if not 1 <= backend.pairs <= MOST_PAIRS:
            raise BadInput(f"{name}: {backend.pairs} queue pairs; 1 to {MOST_PAIRS} can be")
        if mtu and not 68 <= mtu <= 65535:
            raise BadInput(f"{name}: an MTU of {mtu}; 68 to 65535 can be")
        self.backend = backend
        self.mac = self.default_mac = bytes(mac)
        self.mtu = mtu
        self.link = True
        self.lost = lost
        self.pairs = 1
        self.most_pairs = backend.pairs
        self.filter = FrameFilter(self.mac)
        self.policy = FramePolicy()
        self.contexts = []
        features = MAC | MRG_RXBUF | STATUS | CTRL_VQ | CTRL_RX | CTRL_VLAN | CTRL_RX_EXTRA | CTRL_MAC_ADDR
        features |= GUEST_ANNOUNCE | (MTU if mtu else 0) | (MQ if backend.pairs > 1 else 0)
        for feature, offload in (*_GUEST_OFFLOADS, *_HOST_OFFLOADS):
            features |= feature if backend.offloads & offload else 0
        features |= CTRL_GUEST_OFFLOADS if features & GUEST_CSUM else 0
        self.control_index = 2 * backend.pairs
        lanes = [[2 * i, 2 * i + 1] for i in range(backend.pairs)]
        lanes[0].append(self.control_index)
        VirtioDevice.__init__(
            self,
            memory,
            KIND,
            [QUEUE] * self.control_index + [CONTROL_QUEUE],
            name=name,
            driver=DRIVER,
            features=features,
            config=self._config(),
            lanes=lanes,
            log=log,
        )
        for lane in self.lanes:
            self._make_context(lane)

    def _config(self) -> bytes:
        status = (_LINK_UP if self.link else 0) | (_ANNOUNCE if self.announcing else 0)
        return struct.pack("<6sHHH", self.mac, status, self.most_pairs, self.mtu)

    def _make_context(self, lane: Lane) -> None:
        p: cython.pointer(Pair) = cython.cast(cython.pointer(Pair), calloc(1, cython.sizeof(Pair)))
        if p == cython.NULL:
            raise MemoryError
        self.contexts.append(cython.cast(cython.size_t, p))
        lane.context = p
        p.index = lane.index
        p.receiveq = lane.queues[0]
        p.transmitq = lane.queues[1]
        p.tx = chain_new(QUEUE)
        p.iov = cython.cast(cython.pointer(iovec), calloc(QUEUE + 2, cython.sizeof(iovec)))
        if p.tx == cython.NULL or p.iov == cython.NULL:
            raise MemoryError
        i: cython.int
        for i in range(MOST_MERGED):
            p.rx[i] = chain_new(QUEUE)
            if p.rx[i] == cython.NULL:
                raise MemoryError

    def __dealloc__(self):
        i: cython.int
        for address in self.contexts or []:
            p: cython.pointer(Pair) = cython.cast(cython.pointer(Pair), cython.cast(cython.size_t, address))
            chain_free(p.tx)
            free(p.iov)
            for i in range(MOST_MERGED):
                chain_free(p.rx[i])
            free(p)

    def close(self) -> None:
        VirtioDevice.close(self)
        self.backend.close()

    # For its owner.

    def apply_limit(self, bytes: float, byte_burst: float, operations: float, operation_burst: float) -> None:
        """Each direction by itself may have these rates; an operation is a frame."""
        limit_set(cython.address(self.limit), bytes, byte_burst, operations, operation_burst)
        limit_set(cython.address(self.receive_limit), bytes, byte_burst, operations, operation_burst)

    def set_link(self, up: bool) -> None:
        """Plug the cable in, or out: frames are dropped both ways, and the guest is told."""
        self.link = up
        self.set_config(self._config())
        if up:
            self.announce()

    def set_policy(self, policy: FramePolicy) -> None:
        """What the guest may send from now on: no frame is under way by the old policy when this comes back."""
        with self.lock:
            for lane in self.lanes:
                lane.hold()
            self.policy = policy
            self._go_on()

    def announce(self) -> None:
        """Have the guest tell the network where it is now."""
        if self.accepted & GUEST_ANNOUNCE and self.link:
            self.announcing = True
            self.set_config(self._config())

    def replace_backend(self, backend: Backend) -> None:
        """Go on with another backend of as many pairs and offloads; the old one is closed."""
        if backend.pairs != self.backend.pairs or backend.header != self.backend.header:
            raise ValueError("a backend of another kind")
        with self.lock:
            if self.closed:
                backend.close()
                return
            for lane in self.lanes:
                lane.hold()
            for address in self.contexts:
                p: cython.pointer(Pair) = cython.cast(cython.pointer(Pair), cython.cast(cython.size_t, address))
                p.gone = p.blocked = False
                p.length = 0
                p.watched = 0
            for lane in self.lanes:
                cython.cast(Lane, lane).watch(0, -1, 0)
            self.backend.close()
            self.backend = backend
            self._go_on()
        self.set_link(True)

    def counters(self) -> list:
        """For each queue pair, what went each way: frames, bytes, dropped, filtered."""
        found = []
        for address in self.contexts:
            p: cython.pointer(Pair) = cython.cast(cython.pointer(Pair), cython.cast(cython.size_t, address))
            pair = {}
            for way, c in (("received", p.received), ("sent", p.sent)):
                pair[way] = {"frames": c.frames, "bytes": c.bytes, "dropped": c.dropped, "filtered": c.filtered}
            found.append(pair)
        return found

    # Negotiation.

    def accepts(self, features: int) -> bool:
        for some, need in _NEEDS:
            if features & some and not features & need:
                return False
        self.mergeable = (features & MRG_RXBUF) != 0
        self.allowed_flags = NEEDS_CSUM if features & CSUM else 0
        self.allowed_gso = 0
        if features & HOST_TSO4:
            self.allowed_gso |= 1 << GSO_TCPV4
        if features & HOST_TSO6:
            self.allowed_gso |= 1 << GSO_TCPV6
        if features & HOST_UFO:
            self.allowed_gso |= 1 << GSO_UDP
        if features & HOST_USO:
            self.allowed_gso |= 1 << GSO_UDP_L4
        self.control_index = 2 * self.most_pairs if features & MQ else 2
        self.filter.look_at_vlans((features & CTRL_VLAN) != 0)
        self.backend.set_offloads(self._offloads(features))
        self.backend.set_pairs(1)
        return True

    def _offloads(self, features: int) -> int:
        bits = 0
        for feature, offload in _GUEST_OFFLOADS:
            bits |= offload if features & feature else 0
        both = OFFLOAD_USO4 | OFFLOAD_USO6
        return bits if bits & both == both else bits & ~both  # Linux's TAP has both or none

    def stopped(self) -> None:
        self.pairs = 1
        self.announcing = False
        for address in self.contexts:
            p: cython.pointer(Pair) = cython.cast(cython.pointer(Pair), cython.cast(cython.size_t, address))
            p.length = 0  # the next driver may not have agreed to what its header says
        self.mac = self.default_mac
        self.filter.reset(self.mac)
        self.set_config(self._config(), interrupt=False)

    # The control queue, 5.1.6.5.

    def handle(self, queue) -> None:
        while (got := queue.get()) is not None:
            data, _room = got
            good = self._control(data[:2], data[2:])
            queue.release(b"\0" if good else b"\1")

    def _control(self, command: bytes, data: bytes) -> bool:
        if len(command) < 2:
            return False
        kind, number = command
        features = self.accepted
        if kind == 0 and len(data) == 1:
            wanted = CTRL_RX if number < 2 else CTRL_RX_EXTRA
            return (features & wanted) != 0 and self.filter.set_mode(number, data[0] != 0)
        if kind == 1 and number == 0 and features & CTRL_RX:
            return self._set_tables(data)
        if kind == 1 and number == 1 and len(data) == 6 and features & CTRL_MAC_ADDR:
            self.mac = data
            self.filter.set_mac(data)
            self.set_config(self._config(), interrupt=False)
            return True
        if kind == 2 and number < 2 and len(data) == 2 and features & CTRL_VLAN:
            return bool(self.filter.set_vlan(int.from_bytes(data, "little"), number == 0))
        if kind == 3 and number == 0 and features & GUEST_ANNOUNCE:
            self.announcing = False
            self.set_config(self._config(), interrupt=False)
            return True
        if kind == 4 and number == 0 and len(data) == 2 and features & MQ:
            return self._use_pairs(int.from_bytes(data, "little"))
        if kind == 5 and number == 0 and len(data) == 8 and features & CTRL_GUEST_OFFLOADS:
            return self._set_guest_offloads(int.from_bytes(data, "little"))
        return False

    def _set_tables(self, data: bytes) -> bool:
        tables = []
        for _ in range(2):
            count = int.from_bytes(data[:4], "little")
            if len(data) < 4 or count > (len(data) - 4) // 6:
                return False
            tables.append(data[4 : 4 + 6 * count])
            data = data[4 + 6 * count :]
        if data:
            return False
        self.filter.set_tables(tables[0], tables[1])
        return True

    def _use_pairs(self, pairs: int) -> bool:
        if not 1 <= pairs <= self.most_pairs:
            return False
        self.backend.set_pairs(pairs)
        self.pairs = pairs
        for lane in self.lanes:  # those that slept look at their backend now
            os.eventfd_write(cython.cast(Lane, lane).wake, 1)
        return True

    def _set_guest_offloads(self, features: int) -> bool:
        known = 0
        for feature, _ in _GUEST_OFFLOADS:
            known |= feature
        if features & ~(self.accepted & known):
            return False
        self.backend.set_offloads(self._offloads(features))
        return True

    # Saved state.

    def state(self) -> dict:
        saved = VirtioDevice.state(self)
        saved["net"] = {"mac": self.mac, "pairs": self.pairs, "link": bool(self.link), "filter": self.filter.state()}
        return saved

    def restore(self, state: dict) -> None:
        from kvmkit.devices.saved import checked
        from kvmkit.virtio.saved import NetState

        saved = checked(state, NetState, self.name)
        if saved.net.pairs > (self.most_pairs if saved.accepted & MQ else 1):
            raise BadInput(f"saved state of {self.name}: its driver uses more queues than it has")
        VirtioDevice.restore(self, state)
        self.mac = saved.net.mac
        self.link = saved.net.link
        self.filter.set_mac(self.mac)
        self.filter.restore(state["net"]["filter"])
        self.pairs = saved.net.pairs
        self.backend.set_pairs(self.pairs)
        self.set_config(self._config(), interrupt=False)

    # On a lane's thread.

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def serve(self, lane: Lane, q: cython.pointer(VirtQueue)) -> cython.void:
        p: cython.pointer(Pair) = cython.cast(cython.pointer(Pair), lane.context)
        if q.index == self.control_index:
            VirtioDevice.serve(self, lane, q)
        elif q == p.transmitq:
            self.serve_transmit(lane, p, q)
        else:
            p.starved = False
            q.wanted = False  # `look` takes them, and says when there were too few

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def look(self, lane: Lane) -> cython.bint:
        p: cython.pointer(Pair) = cython.cast(cython.pointer(Pair), lane.context)
        if p.blocked and self.backend.flush(p.index):
            p.blocked = False
            p.transmitq.wanted = True
        if p.gone or p.starved or p.index >= self.pairs:
            return False
        return self.receive_frames(lane, p)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def flush(self, lane: Lane) -> cython.void:
        p: cython.pointer(Pair) = cython.cast(cython.pointer(Pair), lane.context)
        if not p.blocked and not self.backend.flush(p.index):
            p.blocked = True
        lane.patient = p.blocked  # each look would be a system call, and keep who is to take it from the processor
        self.watch_backend(lane, p)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def drain(self, lane: Lane) -> cython.void:
        p: cython.pointer(Pair) = cython.cast(cython.pointer(Pair), lane.context)
        self.give_back(p)
        p.starved = False

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def watch_backend(self, lane: Lane, p: cython.pointer(Pair)) -> cython.void:
        """Be woken for what can be done then, and for nothing else: what is not taken would wake us at once."""
        events: cython.int = 0
        if not p.gone:
            if not p.starved and not p.limited and p.index < self.pairs and p.receiveq.ready:
                events |= POLLIN
            if p.blocked:
                events |= POLLOUT
        if events != p.watched:
            p.watched = events
            lane.watch(0, self.backend.descriptor(p.index) if events else -1, cython.cast(cython.short, events))

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def lose(self, p: cython.pointer(Pair)) -> cython.void:
        p.gone = True
        p.length = 0
        with cython.gil:
            try:
                self.link = False
                self.set_config(self._config())
                if self.lost is not None:
                    self.lost(self.backend.failure)
                elif self.log is not None:
                    self.log(f"{self.name}: the network is gone: {self.backend.failure}")
            except Exception:
                pass

    # To the network.

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def serve_transmit(self, lane: Lane, p: cython.pointer(Pair), q: cython.pointer(VirtQueue)) -> cython.void:
        _i: cython.int
        for _i in range(ROUND):
            if p.blocked:
                q.wanted = False
                return
            if not self.may_begin(lane, q) or queue_get(q, p.tx) <= 0:
                return
            done: cython.int = self.transmit(p, q)
            if done < 0:
                return
            if done == FULL:
                queue_unget(q, p.tx)
                p.blocked = True
                q.wanted = False
                return
            queue_release(q, p.tx, 0)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def transmit(self, p: cython.pointer(Pair), q: cython.pointer(VirtQueue)) -> cython.int:
        """Send the frame in `tx`: 1, it is done with; FULL; -1, it is malformed and the queue is broken."""
        header: Header
        if p.tx.write_bytes or p.tx.read_bytes < cython.sizeof(Header):
            queue_break(q, "a frame without its header, or with room for an answer")
            return -1
        chain_read(p.tx, 0, cython.address(header), cython.sizeof(Header))
        length: uint64_t = p.tx.read_bytes - cython.sizeof(Header)
        if length > MOST_FRAME:
            queue_break(q, "a frame of more than 65553 bytes")
            return -1
        if p.gone or not self.link or not self.header_fits(cython.address(header), length):
            p.sent.dropped += 1
            return 1
        # What is looked at is what is sent: the guest may change its own copy meanwhile.
        head: uint64_t = chain_read(p.tx, cython.sizeof(Header), p.head, min(length, cython.cast(uint64_t, HEAD)))
        if not policy_allows(cython.address(self.policy.p), p.head, head):
            p.sent.filtered += 1
            return 1
        count: cython.int = 0
        header.num_buffers = 0
        if self.backend.header:
            p.iov[0].iov_base = cython.address(header)
            p.iov[0].iov_len = cython.sizeof(Header)
            count = 1
        p.iov[count].iov_base = p.head
        p.iov[count].iov_len = head
        count += 1
        skip: uint64_t = cython.sizeof(Header) + head
        i: cython.int
        for i in range(p.tx.count):
            size: uint64_t = p.tx.iov[i].iov_len
            if skip >= size:
                skip -= size
                continue
            p.iov[count].iov_base = cython.cast(cython.pointer(uint8_t), p.tx.iov[i].iov_base) + skip
            p.iov[count].iov_len = size - skip
            count += 1
            skip = 0
        done: cython.int = self.backend.send(p.index, p.iov, count, length + self.backend.header)
        if done == FULL:
            return FULL
        limit_take(cython.address(self.limit), length)
        if done == SENT:
            p.sent.frames += 1
            p.sent.bytes += length
        else:
            p.sent.dropped += 1
        return 1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def header_fits(self, header: cython.pointer(cython.const[Header]), length: uint64_t) -> cython.bint:
        """Whether it asks for nothing that was not agreed on, nor for a checksum outside of its frame."""
        if header.flags & ~self.allowed_flags & 0xFF:
            return False
        if header.flags and cython.cast(uint64_t, header.csum_start) + header.csum_offset + 2 > length:
            return False
        kind: cython.uint = header.gso_type & ~cython.cast(cython.uint, GSO_ECN)
        if kind == GSO_NONE:
            return header.gso_type == 0
        return kind < 8 and self.allowed_gso >> kind & 1 and header.gso_size != 0 and header.flags != 0

    # From the network.

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def receive_frames(self, lane: Lane, p: cython.pointer(Pair)) -> cython.bint:
        """Receive what there is and has room. True: there was something."""
        frame: cython.pointer(uint8_t)
        worked: cython.bint = False
        header: uint64_t = self.backend.header
        _i: cython.int
        for _i in range(ROUND):
            if p.length == 0:
                if p.taken == 0 and not queue_has(p.receiveq):
                    if p.receiveq.ready:
                        p.starved = True
                        p.receiveq.wanted = True
                    return worked
                wait: int64_t = limit_wait(cython.address(self.receive_limit))
                p.limited = wait != 0
                if wait:
                    at: int64_t = monotonic() + wait
                    if lane.due == 0 or at < lane.due:
                        lane.due = at
                    return worked
                got: int64_t = self.backend.receive(p.index, cython.address(frame))
                if got == GONE:
                    self.lose(p)
                    return True
                if got <= 0:
                    return worked
                worked = True
                if cython.cast(uint64_t, got) <= header or not self.link:
                    p.received.dropped += 1
                    continue
                wanted: cython.bint = filter_wants(cython.address(self.filter.f), frame + header, got - header)
                if not wanted or self.policy.p.kind == NOTHING_AT_ALL:
                    p.received.filtered += 1
                    continue
                p.frame = frame
                p.length = got
            if not self.deliver(p):
                return worked
            worked = True
        return worked

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def take_buffers(self, p: cython.pointer(Pair), need: uint64_t) -> cython.int:
        """Hold buffers for `need` bytes: 1; there are too few now: 0; none that fit: -1."""
        while p.room < need and not (p.taken and not self.mergeable):
            if p.taken == MOST_MERGED:
                return -1
            if queue_get(p.receiveq, p.rx[p.taken]) <= 0:
                return 0
            if p.rx[p.taken].read_bytes or p.rx[p.taken].write_bytes < HEADER_BYTES:
                queue_break(p.receiveq, "a buffer for a frame that is too small for its header, or not to be written")
                return 0
            p.room += p.rx[p.taken].write_bytes
            p.taken += 1
        return 1 if p.room >= need else -1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def deliver(self, p: cython.pointer(Pair)) -> cython.bint:
        """Put the frame that waits into buffers. False: there are too few, and it goes on waiting."""
        header: Header
        skip: uint64_t = self.backend.header
        data: cython.pointer(uint8_t) = p.frame + skip
        length: uint64_t = p.length - skip
        fits: cython.int = self.take_buffers(p, length + HEADER_BYTES)
        if fits == 0:
            if p.receiveq.ready:
                p.starved = True
                p.receiveq.wanted = True
            return False
        if fits < 0:
            p.received.dropped += 1
            p.length = 0
            return True
        used: cython.int = 0
        done: uint64_t = 0
        while done < length or used == 0:
            offset: uint64_t = HEADER_BYTES if used == 0 else 0
            part: uint64_t = min(length - done, p.rx[used].write_bytes - offset)
            chain_write(p.rx[used], offset, data + done, part)
            p.written[used] = cython.cast(uint32_t, offset + part)
            done += part
            used += 1
        if skip:
            header = cython.cast(cython.pointer(Header), p.frame)[0]
        else:
            header.flags = header.gso_type = 0
            header.hdr_len = header.gso_size = header.csum_start = header.csum_offset = 0
        header.num_buffers = used
        chain_write(p.rx[0], 0, cython.address(header), cython.sizeof(Header))
        queue_release_together(p.receiveq, p.rx, p.written, used)
        i: cython.int
        for i in range(used):
            p.room -= p.rx[i].write_bytes
        for i in range(used, p.taken):
            p.rx[i], p.rx[i - used] = p.rx[i - used], p.rx[i]
        p.taken -= used
        limit_take(cython.address(self.receive_limit), length)
        p.received.frames += 1
        p.received.bytes += length
        p.length = 0
        return True

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def give_back(self, p: cython.pointer(Pair)) -> cython.void:
        """Buffers that were taken and not used, as if they had not been."""
        while p.taken:
            p.taken -= 1
            queue_unget(p.receiveq, p.rx[p.taken])
        p.room = 0
