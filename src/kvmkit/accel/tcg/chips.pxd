from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
cdef class Lapic:
    cdef public uint64_t apic_base
    cdef public bint nmi_pending
    cdef public uint64_t tsc_khz
    cdef uint64_t tpr(self) noexcept nogil
    cdef void set_tpr(self, uint64_t v) noexcept nogil
    cdef bint read_msr(self, uint32_t msr, uint64_t *value, int64_t now) noexcept nogil
    cdef void set_tsc(self, uint64_t tsc, int64_t now) noexcept nogil
cdef class Chips:
    cdef public Lapic lapic
    cdef bint interrupt_pending(self) noexcept nogil
    cdef int acknowledge(self) noexcept nogil
    cdef int64_t deadline(self) noexcept nogil
    cdef void poll(self, int64_t now) noexcept nogil
    cdef uint32_t take_eoi(self) noexcept nogil
    cdef void set_irq(self, int gsi, bint level) noexcept nogil
    cdef void signal_msi(self, uint64_t a, uint32_t d) noexcept nogil
    cdef bint port_read(self, uint16_t port, unsigned int size, uint32_t *value, int64_t now) noexcept nogil
    cdef bint port_write(self, uint16_t port, unsigned int size, uint32_t value, int64_t now) noexcept nogil
    cdef bint mmio_read(self, uint64_t address, unsigned int size, uint64_t *value, int64_t now) noexcept nogil
    cdef bint mmio_write(self, uint64_t address, unsigned int size, uint64_t value, int64_t now) noexcept nogil
    cdef bint write_msr(self, uint32_t msr, uint64_t value, int64_t now) noexcept nogil
