"""Doorbells on the software CPU: what ioeventfd is on KVM. A guest's write signals an eventfd and nothing else."""

import cython
from cython.cimports.kvmkit.accel.tcg.doorbells import Doorbell
from cython.cimports.libc.stdint import uint64_t
from cython.cimports.libc.stdlib import free, realloc
from cython.cimports.posix.unistd import write

MOST = 1024  # a board's worth of queues many times over; the list is searched on every write near a bell


@cython.cclass
class Doorbells:
    """A VM's doorbells. The owner's lock guards every call."""

    def __cinit__(self):
        self.bells = cython.NULL
        self.count = 0
        self.span()

    def __dealloc__(self):
        free(self.bells)

    def add(self, fd: cython.int, address: uint64_t, size: cython.uint, port: cython.bint, match) -> None:
        """Signal eventfd `fd` at a write of `size` bytes (0: any) to `address`, of the value `match` if it is given."""
        if self.count >= MOST:
            raise OSError(28, "no room for another doorbell")
        for i in range(self.count):
            b = cython.address(self.bells[i])
            same_value = b.matches == (match is not None) and (match is None or b.match == match)
            if b.address == address and b.port == port and b.size == size and same_value:
                raise FileExistsError(17, f"there is a doorbell at {address:#x}")
        grown: cython.pointer(Doorbell) = cython.cast(
            cython.pointer(Doorbell), realloc(self.bells, (self.count + 1) * cython.sizeof(Doorbell))
        )
        if grown == cython.NULL:
            raise MemoryError
        self.bells = grown
        bell = cython.address(grown[self.count])
        bell.address = address
        bell.size = size
        bell.fd = fd
        bell.port = port
        bell.matches = match is not None
        bell.match = match or 0
        self.count += 1
        self.span()

    def remove(self, fd: cython.int, address: uint64_t, size: cython.uint, port: cython.bint, match) -> None:
        """Take a doorbell away. Raises FileNotFoundError when there is none like it."""
        for i in range(self.count):
            b = cython.address(self.bells[i])
            same_value = b.matches == (match is not None) and (match is None or b.match == match)
            if b.address == address and b.port == port and b.size == size and b.fd == fd and same_value:
                self.count -= 1
                self.bells[i] = self.bells[self.count]
                self.span()
                return
        raise FileNotFoundError(2, f"no such doorbell at {address:#x}")

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def span(self) -> cython.void:
        """Remember between which addresses the bells are, so that other writes cost one comparison."""
        kind: cython.int
        i: cython.int
        for kind in range(2):
            self.lowest[kind] = cython.cast(uint64_t, -1)
            self.highest[kind] = 0
        for i in range(self.count):
            kind = 1 if self.bells[i].port else 0
            if self.bells[i].address < self.lowest[kind]:
                self.lowest[kind] = self.bells[i].address
            if self.bells[i].address > self.highest[kind]:
                self.highest[kind] = self.bells[i].address

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def ring(self, port: cython.bint, address: uint64_t, size: cython.uint, value: uint64_t) -> cython.bint:
        """Signal the bell this write is for. False: it is for none."""
        kind: cython.int = 1 if port else 0
        if address < self.lowest[kind] or address > self.highest[kind]:
            return False
        one: uint64_t = 1
        i: cython.int
        for i in range(self.count):
            b = cython.address(self.bells[i])
            if b.address != address or b.port != port or (b.size and b.size != size):
                continue
            if b.matches and b.match != value:
                continue
            write(b.fd, cython.address(one), 8)  # an eventfd that is full has been signalled already
            return True
        return False
