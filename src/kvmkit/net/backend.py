"""What a network backend is: it takes a frame, and gives one, for each of its queue pairs.

One in Python overrides three methods, and that is all:

    class Echo(Backend):
        def __init__(self):
            super().__init__("echo")
            self.frames = []
        def fileno(self): return -1  # a descriptor that is readable when there is a frame; -1: when one was sent
        def send_frame(self, frame): self.frames.append(frame)
        def receive_frame(self): return self.frames.pop(0) if self.frames else None

A compiled one derives in a .pxd and overrides `descriptor`, `send`, `flush` and `receive`, which run without the GIL.
Frames are Ethernet's, without preamble and check sequence. With `header` 12, each has a virtio_net_hdr_v1 before it.
"""

import cython
from cython.cimports.kvmkit.net.backend import DROPPED, GONE, NOTHING, SENT
from cython.cimports.libc.stdint import int64_t, uint8_t, uint64_t
from cython.cimports.posix.uio import iovec

# TUNSETOFFLOAD's bits, which are what `offloads` and `set_offloads` speak of. Source: <linux/if_tun.h>.
OFFLOAD_CSUM: int = 1
OFFLOAD_TSO4: int = 2
OFFLOAD_TSO6: int = 4
OFFLOAD_ECN: int = 8
OFFLOAD_UFO: int = 16
OFFLOAD_USO4: int = 32
OFFLOAD_USO6: int = 64


@cython.cclass
class Backend:
    """`pairs`: how many queue pairs it serves. `offloads`: what it can leave undone, as TUNSETOFFLOAD's bits."""

    def __init__(self, name: str, *, pairs: int = 1, header: int = 0, offloads: int = 0):
        self.name = name
        self.pairs = pairs
        self.header = header
        self.offloads = offloads
        self.failure = ""
        self.kept = None

    # For the device's control side.

    def set_offloads(self, bits: int) -> None:
        """What the guest takes unfinished from now on."""

    def set_pairs(self, pairs: int) -> None:
        """How many queue pairs the guest uses from now on."""

    def close(self) -> None:
        """No lane runs any more."""

    # What one in Python overrides.

    def fileno(self) -> int:
        return -1

    def send_frame(self, frame: bytes) -> None:
        """Take a frame. It may not wait."""

    def receive_frame(self):
        """The next frame, or None; it may not wait."""
        return None

    # What a compiled one overrides.

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def descriptor(self, pair: cython.int) -> cython.int:
        """Readable when there is a frame, writable when one that was refused (FULL) may be tried again; -1: none."""
        with cython.gil:
            try:
                return cython.cast(cython.int, self.fileno())
            except Exception:
                return -1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def send(
        self, pair: cython.int, iov: cython.pointer(cython.const[iovec]), count: cython.int, length: uint64_t
    ) -> cython.int:
        """Take a frame of `length` bytes, header included: SENT (it may still wait for `flush`), FULL or DROPPED."""
        with cython.gil:
            try:
                parts = []
                i: cython.int
                for i in range(count):
                    parts.append(cython.cast(cython.p_char, iov[i].iov_base)[: iov[i].iov_len])
                self.send_frame(b"".join(parts))
                return SENT
            except Exception:
                return DROPPED

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def flush(self, pair: cython.int) -> cython.bint:
        """Pass on what `send` gathered. False: there is some left, to be tried when the descriptor is writable."""
        return True

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def receive(self, pair: cython.int, frame: cython.pointer(cython.pointer(uint8_t))) -> int64_t:
        """Bytes of the next frame, which is at `*frame` until the next call; NOTHING; GONE, with `failure` set."""
        with cython.gil:
            try:
                got = self.receive_frame()
                if got is None:
                    return NOTHING
                self.kept = bytes(got)
                data: cython.pointer(uint8_t) = self.kept
                frame[0] = data
                return len(self.kept)
            except Exception as error:
                self.failure = f"{type(error).__name__}: {error}"
                return GONE
