"""Entropy from the host. Source: virtio 1.2, 5.4."""

import cython
from cython.cimports.kvmkit.virtio.chain import chain_free, chain_new
from cython.cimports.kvmkit.virtio.lane import Lane
from cython.cimports.kvmkit.virtio.limit import limit_take
from cython.cimports.kvmkit.virtio.queue import queue_get, queue_release
from cython.cimports.kvmkit.virtio.ring import VirtQueue
from cython.cimports.kvmkit.virtio.rng import MOST, getrandom
from cython.cimports.libc.stdint import uint16_t, uint32_t, uint64_t

KIND: int = 4
DRIVER: str = "CONFIG_HW_RANDOM_VIRTIO (virtio_rng)"
QUEUE: int = 64


@cython.cclass
class Rng(VirtioDevice):
    """One queue, whose buffers come back full of random bytes, 64 KiB at most in each."""

    def __init__(self, memory, *, name: str = "rng", log=None):
        VirtioDevice.__init__(self, memory, KIND, [QUEUE], name=name, driver=DRIVER, log=log)
        self.chain = chain_new(QUEUE)
        if self.chain == cython.NULL:
            raise MemoryError

    def __dealloc__(self):
        chain_free(self.chain)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def serve(self, lane: Lane, q: cython.pointer(VirtQueue)) -> cython.void:
        while self.may_begin(lane, q) and queue_get(q, self.chain) > 0:
            done: uint64_t = 0
            i: uint16_t
            for i in range(self.chain.readable, self.chain.count):
                want: uint64_t = min(self.chain.iov[i].iov_len, MOST - done)
                got: cython.Py_ssize_t = getrandom(self.chain.iov[i].iov_base, want, 0)
                if got > 0:
                    done += got
                if got < 0 or cython.cast(uint64_t, got) < self.chain.iov[i].iov_len:
                    break
            limit_take(cython.address(self.limit), done)
            queue_release(q, self.chain, cython.cast(uint32_t, done))
