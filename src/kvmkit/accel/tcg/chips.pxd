from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t

from kvmkit.accel.tcg.ioapic cimport Ioapic
from kvmkit.accel.tcg.lapic cimport Lapic
from kvmkit.accel.tcg.pic cimport Pic
from kvmkit.accel.tcg.pit cimport Pit

cdef class Chips:
    cdef readonly Lapic lapic
    cdef readonly Ioapic ioapic
    cdef readonly Pic pic
    cdef readonly Pit pit
    cdef uint32_t resample
    cdef uint32_t ended
    cdef bint wire

    cpdef void reset(self) noexcept nogil
    cpdef void set_resample(self, uint32_t gsis) noexcept nogil
    cpdef void set_irq(self, unsigned int gsi, bint level) noexcept nogil
    cpdef bint signal_msi(self, uint64_t address, uint32_t data) noexcept nogil
    cdef bint port_read(self, uint16_t port, unsigned int size, uint32_t *value, int64_t now) noexcept nogil
    cpdef bint port_write(self, uint16_t port, unsigned int size, uint32_t value, int64_t now) noexcept nogil
    cdef bint mmio_read(self, uint64_t address, unsigned int size, uint64_t *value, int64_t now) noexcept nogil
    cpdef bint mmio_write(self, uint64_t address, unsigned int size, uint64_t value, int64_t now) noexcept nogil
    cdef bint read_msr(self, uint32_t msr, uint64_t *value, int64_t now) noexcept nogil
    cpdef bint write_msr(self, uint32_t msr, uint64_t value, int64_t now) noexcept nogil
    cpdef bint interrupt_pending(self) noexcept nogil
    cpdef int acknowledge(self) noexcept nogil
    cpdef int64_t deadline(self) noexcept nogil
    cpdef void poll(self, int64_t now) noexcept nogil
    cpdef uint32_t take_eoi(self) noexcept nogil

    cdef void end(self, int vector) noexcept nogil
    cdef void told(self, uint32_t gsis) noexcept nogil
    cdef void follow(self) noexcept nogil
