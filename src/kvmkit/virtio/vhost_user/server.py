"""The backend's side: one of our devices for another VMM. Source: QEMU's docs/interop/vhost-user.rst.

The protocol takes the place of a transport: it sets features, queues, doorbells (kick) and interrupts (call). The
queues are served as in a VM of ours, by the device's lanes, in the memory that the frontend shares.
"""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from kvmkit.errors import BadInput, HostError
from kvmkit.memory.foreign import ForeignMemory
from kvmkit.vhost_user.messages import (
    CONFIG,
    MOST_CONFIG,
    NEED_REPLY,
    NO_DESCRIPTOR,
    PROTOCOL_FEATURES,
    REGION,
    REPLY,
    U64,
    VRING_ADDR,
    VRING_STATE,
    BackendRequest,
    Channel,
    PeerGone,
    PeerWrong,
    Protocol,
    Request,
    close_all,
)
from kvmkit.virtio.device import FEATURES_OK, VirtioDevice
from kvmkit.virtio.features import IN_ORDER, RING_PACKED, RING_RESET

OFFERED = Protocol.MQ | Protocol.REPLY_ACK | Protocol.BACKEND_REQ | Protocol.CONFIG | Protocol.RESET_DEVICE
NOT_OFFERED = IN_ORDER | RING_RESET
"""What would need more of the protocol than is done here."""
READY = 0x0F
MESSAGE_SECONDS = 10.0

Maker = Callable[[ForeignMemory, Callable[[str], None]], VirtioDevice]


@dataclass
class Ring:
    """What the frontend has said of a queue; addresses are guest physical."""

    size: int = 0
    base: int = 0
    """Where to begin: a split ring's next available entry; of a packed one, see `_place`."""
    addresses: tuple[int, int, int] | None = None
    kick: int = -1
    call: int = -1
    enabled: bool = False
    running: bool = False


@dataclass
class Memory:
    regions: list[tuple[int, int, int]] = field(default_factory=list)
    """(guest physical address, bytes, the frontend's address)."""

    def guest(self, theirs: int) -> int:
        for start, size, user in self.regions:
            if user <= theirs < user + size:
                return start + theirs - user
        raise PeerWrong(f"an address, {theirs:#x}, that is in none of its memory")


class Server:
    """Offers what `make` makes at `path`, a UNIX socket, to one frontend after the other, until `stop`.

    `withheld` are features that are not offered, `negotiated` is called when the driver's are known.
    Raises BadInput or HostError when it can't listen, and what `make` raises.
    """

    def __init__(
        self,
        path: str,
        make: Maker,
        log: Callable[[str], None],
        *,
        withheld: int = 0,
        negotiated: Callable[[VirtioDevice], None] | None = None,
    ) -> None:
        self.withheld = NOT_OFFERED | withheld
        self._negotiated = negotiated
        self.path = path
        self.log = log
        self.memory = ForeignMemory(4096)
        self._end = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._changed = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.served = 0
        self._channel: Channel | None = None
        self._listener = listen(path)
        try:
            self.device = make(self.memory, log)
        except BaseException:
            self._unlisten()
            raise
        for queue in self.device.queues:
            queue.widen()
        self.device.wire_config(self._changed)
        self._forget()

    def stop(self) -> None:
        """Have `run` come back; from any thread, and from a signal's handler."""
        os.eventfd_write(self._end, 1)

    def close(self) -> None:
        self._unlisten()
        self.device.wire_config(-1)
        self.device.close()
        os.close(self._end)
        os.close(self._changed)

    def _unlisten(self) -> None:
        self._listener.close()
        try:
            os.unlink(self.path)
        except OSError:
            pass

    def run(self) -> None:
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._end, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            if self._end in ready:
                return
            sock, _ = self._listener.accept()
            self.served += 1
            self._channel = Channel(sock, MESSAGE_SECONDS)
            try:
                if self._session(self._channel):
                    return
            except PeerGone:
                pass
            except (PeerWrong, BadInput, struct.error, OSError) as error:
                self.log(f"the frontend is let go: {error}")
            finally:
                self._channel.close()
                self._reset()
                self._forget()

    def _forget(self) -> None:
        self._rings = [Ring() for _ in self.device.queues]
        self._known = Memory()
        self._protocol = Protocol(0)
        self._has_protocol = False
        self._back: Channel | None = None

    def _reset(self) -> None:
        """The frontend has gone: nothing of it is used any more."""
        self.device.write_status(0)
        for queue, ring in zip(self.device.queues, self._rings, strict=True):
            self._silence(queue.index, ring)
        self.memory.map([])
        if self._back is not None:
            self._back.close()

    def _session(self, channel: Channel) -> bool:
        """Serve a frontend until it goes (PeerGone) or `stop` is called: True."""
        poll = select.poll()
        for fd in (channel.sock.fileno(), self._end, self._changed):
            poll.register(fd, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            if self._end in ready:
                return True
            if self._changed in ready:
                os.eventfd_read(self._changed)
                self._tell_change()
            if channel.sock.fileno() in ready:
                request, flags, payload, fds = channel.receive()
                try:
                    self._take(channel, request, flags, payload, fds)
                finally:
                    close_all(fds)

    def _tell_change(self) -> None:
        if self._back is not None:
            try:
                self._back.send(BackendRequest.CONFIG_CHANGE)
            except PeerGone:
                self._back = None

    def _take(self, channel: Channel, request: int, flags: int, payload: bytes, fds: list[int]) -> None:
        answer = self._do(request, payload, fds)
        if answer is not None:
            channel.send(request, answer, flags=REPLY)
        elif flags & NEED_REPLY and self._protocol & Protocol.REPLY_ACK:
            channel.send(request, U64.pack(0), flags=REPLY)

    def _do(self, request: int, payload: bytes, fds: list[int]) -> bytes | None:
        """One message; its answer, where it has one of its own."""
        match request:
            case Request.GET_FEATURES:
                return U64.pack(self.device.features & ~self.withheld | PROTOCOL_FEATURES)
            case Request.SET_FEATURES:
                self._set_features(*U64.unpack(payload))
            case Request.GET_PROTOCOL_FEATURES:
                return U64.pack(OFFERED)
            case Request.SET_PROTOCOL_FEATURES:
                self._protocol = Protocol(U64.unpack(payload)[0] & OFFERED)
            case Request.GET_QUEUE_NUM:
                return U64.pack(len(self.device.queues))
            case Request.SET_OWNER | Request.RESET_OWNER | Request.SET_VRING_ERR:
                pass
            case Request.SET_MEM_TABLE:
                self._set_memory(payload, fds)
            case Request.GET_CONFIG:
                return self._get_config(payload)
            case Request.SET_CONFIG:
                offset, size, _ = CONFIG.unpack_from(payload)
                if size in (1, 2, 4, 8) and len(payload) == CONFIG.size + size:
                    self.device.write_config(offset, size, int.from_bytes(payload[CONFIG.size :], "little"))
            case Request.SET_BACKEND_REQ_FD:
                self._take_back_channel(fds)
            case Request.RESET_DEVICE:
                self._stop_all()
                self.device.write_status(0)
            case Request.GET_VRING_BASE:
                index, _ = VRING_STATE.unpack(payload)
                return VRING_STATE.pack(index, self._stop(index))
            case _:
                self._set_ring(request, payload, fds)
        return None

    def _take_back_channel(self, fds: list[int]) -> None:
        if len(fds) != 1:
            raise PeerWrong("a channel without a socket")
        fd = os.dup(fds[0])
        try:
            sock = socket.socket(fileno=fd)
        except OSError:
            os.close(fd)
            raise PeerWrong("a channel that is no socket") from None
        if self._back is not None:
            self._back.close()
        self._back = Channel(sock, MESSAGE_SECONDS)

    def _set_features(self, features: int) -> None:
        device = self.device
        self._has_protocol = bool(features & PROTOCOL_FEATURES)
        features &= ~PROTOCOL_FEATURES
        if device.status & FEATURES_OK and device.accepted == features:
            return
        self._stop_all()
        device.write_status(0)
        device.accept(features)
        device.write_status(READY)
        if self._negotiated is not None:
            self._negotiated(device)
        if features & self.withheld or not device.status & FEATURES_OK:
            raise PeerWrong(f"features {features:#x}: not all are offered, or VIRTIO_F_VERSION_1 is missing")

    def _get_config(self, payload: bytes) -> bytes:
        offset, size, flags = CONFIG.unpack_from(payload)
        if offset + size > MOST_CONFIG:
            return b""
        data = self.device.config.ljust(MOST_CONFIG, b"\0")[offset : offset + size]
        return CONFIG.pack(offset, size, flags) + data

    def _set_memory(self, payload: bytes, fds: list[int]) -> None:
        count, _ = VRING_STATE.unpack_from(payload)
        if count != len(fds) or len(payload) < VRING_STATE.size + count * REGION.size:
            raise PeerWrong(f"{count} pieces of memory in {len(fds)} files")
        table = [REGION.unpack_from(payload, VRING_STATE.size + i * REGION.size) for i in range(count)]
        device = self.device
        device.hold()
        try:
            saved = [queue.state() for queue in device.queues]
            self.memory.map([(guest, size, fd, at) for (guest, size, _, at), fd in zip(table, fds, strict=True)])
            self._known = Memory([(guest, size, user) for guest, size, user, _ in table])
            for queue, state in zip(device.queues, saved, strict=True):
                queue.restore(state, device.accepted)  # its rings have another address here
        except BaseException:
            for queue in device.queues:  # what they knew of is mapped no more
                queue.disable()
            raise
        finally:
            device.release()

    def _ring(self, index: int) -> Ring:
        if not 0 <= index < len(self._rings):
            raise PeerWrong(f"queue {index}: there are {len(self._rings)}")
        return self._rings[index]

    def _set_ring(self, request: int, payload: bytes, fds: list[int]) -> None:
        match request:
            case Request.SET_VRING_NUM:
                index, size = VRING_STATE.unpack(payload)
                self._ring(index).size = size
            case Request.SET_VRING_BASE:
                index, base = VRING_STATE.unpack(payload)
                self._ring(index).base = base
            case Request.SET_VRING_ADDR:
                index, _, descriptors, used, available, _ = VRING_ADDR.unpack(payload)
                guest = self._known.guest
                self._ring(index).addresses = guest(descriptors), guest(available), guest(used)
            case Request.SET_VRING_ENABLE:
                index, enabled = VRING_STATE.unpack(payload)
                self._ring(index).enabled = bool(enabled)
                self._consider(index)
            case Request.SET_VRING_KICK | Request.SET_VRING_CALL:
                index = U64.unpack(payload)[0] & 0xFF
                self._set_descriptor(index, request == Request.SET_VRING_KICK, payload, fds)
            case _:
                raise PeerWrong(f"message {request}, which is not known here")

    def _set_descriptor(self, index: int, kick: bool, payload: bytes, fds: list[int]) -> None:
        ring = self._ring(index)
        if U64.unpack(payload)[0] & NO_DESCRIPTOR or len(fds) != 1:
            if kick:
                raise PeerWrong("a queue without a doorbell")
            fd = -1
        else:
            fd = os.dup(fds[0])
            os.set_blocking(fd, False)
        old = ring.kick if kick else ring.call
        if kick:
            ring.kick = fd
        else:
            ring.call = fd
        if ring.running:
            queue = self.device.queues[index]
            self.device.hold()
            if kick:
                os.dup2(fd, queue.doorbell, inheritable=False)
            queue.wire(queue.doorbell, ring.call)
            self.device.release()
            if not kick:
                self._call(fd)
        if old >= 0:
            os.close(old)
        self._consider(index)

    @staticmethod
    def _call(fd: int) -> None:
        """Once by the new descriptor: what was told by the old one while this message was on its way, nobody heard."""
        if fd >= 0:
            with suppress(OSError):
                os.eventfd_write(fd, 1)

    def _consider(self, index: int) -> None:
        """Start a queue when all is known of it."""
        ring = self._rings[index]
        enabled = ring.enabled or not self._has_protocol
        if ring.running or ring.kick < 0 or ring.addresses is None or not enabled:
            return
        device, queue = self.device, self.device.queues[index]
        descriptors, available, used = ring.addresses
        device.hold()
        try:
            os.dup2(ring.kick, queue.doorbell, inheritable=False)
            queue.wire(queue.doorbell, ring.call)
            queue.restore(
                {
                    "size": ring.size,
                    "ready": True,
                    "descriptors": descriptors,
                    "driver": available,
                    "device": used,
                    "broken": "",
                    **self._place(ring.base, used),
                },
                device.accepted,
            )
            ring.running = True
        finally:
            device.release()

    def _place(self, base: int, used: int) -> dict[str, int | bool]:
        """What SET_VRING_BASE said. Packed: 15 bits for the next available place and one for its round, then the same
        for used places; who sends 16 bits only has nothing in flight, and both are the same."""
        if not self.device.accepted & RING_PACKED:
            return {
                "next_avail": base & 0xFFFF,
                "next_used": self._used(used),
                "avail_wrap": True,
                "used_wrap": True,
            }
        rest = base >> 16 or base
        return {
            "next_avail": base & 0x7FFF,
            "avail_wrap": bool(base & 0x8000),
            "next_used": rest & 0x7FFF,
            "used_wrap": bool(rest & 0x8000),
        }

    def _used(self, ring: int) -> int:
        try:
            return int.from_bytes(self.memory.read(ring + 2, 2), "little")
        except ValueError:
            raise PeerWrong("a ring outside of its memory") from None

    def _stop(self, index: int) -> int:
        """Come back when nothing of a queue is used any more; the first entry that was not taken."""
        ring = self._ring(index)
        queue = self.device.queues[index]
        self.device.hold()
        try:
            if ring.running:
                state = queue.state()
                ring.base = state["next_avail"]
                if self.device.accepted & RING_PACKED:
                    ring.base |= state["avail_wrap"] << 15 | state["next_used"] << 16 | state["used_wrap"] << 31
            queue.disable()
            self._silence(index, ring)
        finally:
            self.device.release()
        return ring.base

    def _silence(self, index: int, ring: Ring) -> None:
        queue = self.device.queues[index]
        queue.wire(queue.doorbell, -1)
        if ring.running:  # its own eventfd again, instead of the frontend's
            fresh = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            os.dup2(fresh, queue.doorbell, inheritable=False)
            os.close(fresh)
        for fd in (ring.kick, ring.call):
            if fd >= 0:
                os.close(fd)
        ring.kick = ring.call = -1
        ring.running = False

    def _stop_all(self) -> None:
        for index in range(len(self._rings)):
            self._stop(index)


def listen(path: str) -> socket.socket:
    """A socket of this user's alone, where none is in use. Raises BadInput and HostError."""
    if len(os.fsencode(path)) > 107:
        raise BadInput(f"--socket {path}: longer than the name of a socket can be (107 bytes)")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    before = os.umask(0o177)
    try:
        _remove_stale(path)
        listener.bind(path)
        listener.listen(4)
    except OSError as error:
        listener.close()
        raise HostError(f"--socket {path}: {error.strerror}") from error
    except BaseException:
        listener.close()
        raise
    finally:
        os.umask(before)
    return listener


def _remove_stale(path: str) -> None:
    """Remove the socket that a process left which is no more."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            if os.path.isfile(path):
                raise BadInput(f"--socket {path}: a file is there") from None
            os.unlink(path)
            return
    raise BadInput(f"--socket {path}: another process listens there")
