"""A TAP device of the host's: the kernel's end of a cable. Source: the kernel's tuntap.rst and <linux/if_tun.h>.

Frames have the virtio-net header before them, so that checksums and segmentation are left to whoever needs them last.
"""

import errno as errors
import fcntl
import os
import struct

import cython
from cython.cimports.kvmkit.net.backend import DROPPED, FULL, GONE, HEADER, MOST_FRAME, NOTHING, SENT
from cython.cimports.kvmkit.net.tap import MOST_TAP_PAIRS
from cython.cimports.libc.errno import EAGAIN, EINTR, errno
from cython.cimports.libc.stdint import int64_t, uint8_t, uint64_t
from cython.cimports.libc.stdlib import free, malloc
from cython.cimports.posix.uio import iovec, writev
from cython.cimports.posix.unistd import read

from kvmkit.errors import BadInput, HostError
from kvmkit.net.backend import (
    OFFLOAD_CSUM,
    OFFLOAD_ECN,
    OFFLOAD_TSO4,
    OFFLOAD_TSO6,
    OFFLOAD_UFO,
    OFFLOAD_USO4,
    OFFLOAD_USO6,
)
from kvmkit.net.interface import interface_mtu, is_persistent_tap, user_name

IFF_TAP: int = 0x0002
IFF_NO_PI: int = 0x1000
IFF_VNET_HDR: int = 0x4000
IFF_MULTI_QUEUE: int = 0x0100
IFF_ATTACH_QUEUE: int = 0x0200
IFF_DETACH_QUEUE: int = 0x0400
TUNSETIFF: int = 0x400454CA
TUNSETOFFLOAD: int = 0x400454D0
TUNSETQUEUE: int = 0x400454D9
TUNSETVNETHDRSZ: int = 0x400454D8


@cython.cclass
class TapBackend(Backend):
    """The TAP device `name`, made if it is not there (it then goes with this); "%d" in it is a number that is free.

    `name` tells which it became. BadInput or HostError in one line, with the command that helps.
    """

    def __init__(self, name: str, *, pairs: int = 1):
        i: cython.int
        for i in range(MOST_TAP_PAIRS):
            self.fds[i] = -1
        if not 1 <= pairs <= MOST_TAP_PAIRS:
            raise BadInput(f"tap={name}: {pairs} queue pairs; 1 to {MOST_TAP_PAIRS} can be")
        found = is_persistent_tap(name)
        if found is not None and not found & IFF_MULTI_QUEUE:
            pairs = 1
        flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
        if pairs > 1 or (found is not None and found & IFF_MULTI_QUEUE):
            flags |= IFF_MULTI_QUEUE
        try:
            for i in range(pairs):
                name = self._open_queue(i, name, flags, found is not None)
        except BaseException:
            self.close()
            raise
        self.mtu = interface_mtu(name)
        self.attached = pairs
        offloads = OFFLOAD_CSUM | OFFLOAD_TSO4 | OFFLOAD_TSO6 | OFFLOAD_ECN | OFFLOAD_UFO
        try:
            fcntl.ioctl(self.fds[0], TUNSETOFFLOAD, offloads | OFFLOAD_USO4 | OFFLOAD_USO6)
            offloads |= OFFLOAD_USO4 | OFFLOAD_USO6
        except OSError:
            pass  # before Linux 6.2
        Backend.__init__(self, name, pairs=pairs, header=HEADER, offloads=offloads)
        self.set_offloads(0)

    def _open_queue(self, i: cython.int, name: str, flags: int, there: bool) -> str:
        self.buffers[i] = cython.cast(cython.pointer(uint8_t), malloc(HEADER + MOST_FRAME))
        if self.buffers[i] == cython.NULL:
            raise MemoryError
        try:
            self.fds[i] = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            answer = fcntl.ioctl(self.fds[i], TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
            fcntl.ioctl(self.fds[i], TUNSETVNETHDRSZ, struct.pack("i", HEADER))
        except OSError as error:
            raise _explained(name, there, error) from None
        return answer[:16].rstrip(b"\0").decode()

    def __dealloc__(self):
        i: cython.int
        for i in range(MOST_TAP_PAIRS):
            free(self.buffers[i])

    def close(self) -> None:
        i: cython.int
        for i in range(MOST_TAP_PAIRS):
            if self.fds[i] >= 0:
                os.close(self.fds[i])
                self.fds[i] = -1

    def set_offloads(self, bits: int) -> None:
        i: cython.int
        for i in range(self.pairs):
            fcntl.ioctl(self.fds[i], TUNSETOFFLOAD, bits)

    def set_pairs(self, pairs: int) -> None:
        """Have the kernel use the first so many of its queues."""
        i: cython.int
        for i in range(self.pairs):
            if self.pairs > 1 and (i < pairs) != (i < self.attached):
                flag = IFF_ATTACH_QUEUE if i < pairs else IFF_DETACH_QUEUE
                fcntl.ioctl(self.fds[i], TUNSETQUEUE, struct.pack("16sH22x", b"", flag))
        self.attached = pairs

    def fileno(self) -> int:
        return self.fds[0]

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def descriptor(self, pair: cython.int) -> cython.int:
        return self.fds[pair]

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def send(
        self, pair: cython.int, iov: cython.pointer(cython.const[iovec]), count: cython.int, length: uint64_t
    ) -> cython.int:
        while writev(self.fds[pair], cython.cast(cython.pointer(iovec), iov), count) < 0:
            if errno == EAGAIN:
                return FULL
            if errno != EINTR:
                return DROPPED  # the kernel checks the header, too
        return SENT

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def receive(self, pair: cython.int, frame: cython.pointer(cython.pointer(uint8_t))) -> int64_t:
        while True:
            got: cython.Py_ssize_t = read(self.fds[pair], self.buffers[pair], HEADER + MOST_FRAME)
            if got > 0:
                frame[0] = self.buffers[pair]
                return got
            if got == 0 or errno == EAGAIN:
                return NOTHING
            if errno != EINTR:
                with cython.gil:
                    self.failure = f"the TAP device {self.name} is gone, or down"
                return GONE


def _explained(name: str, there: bool, error: OSError) -> Exception:
    number = error.errno
    if number == errors.ENOENT:
        return HostError("this host has no /dev/net/tun: sudo modprobe tun")
    if number in (errors.EPERM, errors.EACCES):
        user = user_name()
        if there:
            return HostError(
                f"tap={name}: it is another user's: sudo ip tuntap del dev {name} mode tap && "
                f"sudo ip tuntap add dev {name} mode tap user {user} && sudo ip link set {name} up"
            )
        return HostError(
            f"tap={name}: only root can make it: sudo ip tuntap add dev {name} mode tap user {user} && "
            f"sudo ip link set {name} up"
        )
    if number == errors.EBUSY:
        return BadInput(f"tap={name}: it is in use by another VM or program")
    if number == errors.EINVAL:
        return BadInput(f"tap={name}: there is an interface of that name which is no TAP device")
    return HostError(f"tap={name}: {error.strerror}")
