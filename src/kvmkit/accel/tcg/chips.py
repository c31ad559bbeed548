import cython
from cython.cimports.libc.stdint import *
@cython.cclass
class Lapic:
    pass
    def __init__(self):
        pass
    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def tpr(self) -> uint64_t:
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def set_tpr(self, v: uint64_t) -> cython.void:
        return

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def read_msr(self, msr: uint32_t, value: cython.pointer(uint64_t), now: int64_t) -> cython.bint:
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def set_tsc(self, tsc: uint64_t, now: int64_t) -> cython.void:
        return

@cython.cclass
class Chips:
    pass
    def __init__(self):
        self.lapic=Lapic()
    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def interrupt_pending(self) -> cython.bint:
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def acknowledge(self) -> cython.int:
        return -1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def deadline(self) -> int64_t:
        return 0x7FFFFFFFFFFFFFFF

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def poll(self, now: int64_t) -> cython.void:
        return

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def take_eoi(self) -> uint32_t:
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def set_irq(self, gsi: cython.int, level: cython.bint) -> cython.void:
        return

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def signal_msi(self, a: uint64_t, d: uint32_t) -> cython.void:
        return

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def port_read(self, port: uint16_t, size: cython.uint, value: cython.pointer(uint32_t), now: int64_t) -> cython.bint:
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def port_write(self, port: uint16_t, size: cython.uint, value: uint32_t, now: int64_t) -> cython.bint:
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def mmio_read(self, address: uint64_t, size: cython.uint, value: cython.pointer(uint64_t), now: int64_t) -> cython.bint:
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def mmio_write(self, address: uint64_t, size: cython.uint, value: uint64_t, now: int64_t) -> cython.bint:
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def write_msr(self, msr: uint32_t, value: uint64_t, now: int64_t) -> cython.bint:
        return 0

    def get(self,n):
        return bytes(1024)
    def set(self,n,d):
        pass
