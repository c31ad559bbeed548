from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from kvmkit.virtio.device cimport VirtioDevice
from kvmkit.virtio.lane cimport Lane
from kvmkit.virtio.ring cimport Chain, VirtQueue
from kvmkit.virtio.sockets cimport epoll_event

cdef extern from "<unistd.h>" nogil:
    int close_fd "close"(int)

cdef enum:
    QUEUE = 64
    PORTS = 8
    NAME_BYTES = 64
    EVENTS = 32
    TURN = 64  # requests taken before others have their turn
    CONTROL_IN = 2  # the queue by which the driver is told
    CONTROL_OUT = 3

cdef enum:  # events of struct virtio_console_control, virtio 1.2, 5.3.6.2
    DEVICE_READY = 0
    DEVICE_ADD = 1
    PORT_READY = 3
    CONSOLE_PORT = 4
    RESIZE = 5
    PORT_OPEN = 6
    PORT_NAME = 7

cdef enum:  # what the driver is to be told of a port: a bit for each event, in this order
    TELL_ADD = 1
    TELL_CONSOLE = 2
    TELL_NAME = 4
    TELL_OPEN = 8
    TELL_SIZE = 16

cdef packed struct Control:
    uint32_t id
    uint16_t event
    uint16_t value

cdef struct Port:
    int listener
    int fd  # of the program that is connected; -1: none
    uint32_t generation
    bint is_console
    bint ready  # the driver has it
    bint open  # a program of the guest's has it open
    bint readable
    bint gone  # the host's program has closed its end
    uint64_t sent  # bytes of the first waiting request that are through
    uint8_t tell
    char name[NAME_BYTES]
    int name_length

cdef class Console(VirtioDevice):
    cdef Port ports[PORTS]
    cdef readonly int count
    cdef readonly list paths
    cdef Chain *chain
    cdef int epoll
    cdef uint16_t columns, rows
    cdef uint32_t tell_size
    cdef epoll_event events[EVENTS]

    cdef VirtQueue *queue(self, Lane lane, int port, bint out) noexcept nogil
    cdef void accept(self, Port *p) noexcept nogil
    cdef void hang_up(self, Port *p) noexcept nogil
    cdef void happened(self, Lane lane, int number, uint64_t what, uint32_t events) noexcept nogil
    cdef bint pump(self, Lane lane, int number) noexcept nogil
    cdef bint pump_control(self, Lane lane) noexcept nogil
    cdef void take(self, VirtQueue *q, Port *p) noexcept nogil
    cdef void control(self, const Control *message) noexcept nogil
    cdef bint multiport(self) noexcept nogil
