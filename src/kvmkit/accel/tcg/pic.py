"""The two 8259A interrupt controllers of a PC, the second at line 2 of the first.

State is KVM's struct kvm_pic_state, one per chip, and is used as it is. Differences from the chip, as on every PC
since the PIIX: which lines are level-triggered is said by ELCR (ports 0x4d0, 0x4d1), not by ICW1; and an edge is
remembered when the line falls before it is acknowledged, because eventfds raise interrupts as pulses.
Source: Intel 8259A data sheet; ELCR: Intel 82371AB (PIIX4).
"""

import cython
from cython.cimports.kvmkit.accel.tcg.formats import kvm_pic_state
from cython.cimports.libc.stdint import uint8_t, uint32_t
from cython.cimports.libc.string import memcpy, memset

from kvmkit.errors import BadInput

CASCADE = cython.declare(cython.int, 2)
SPURIOUS = cython.declare(cython.int, 7)
# The timer, keyboard, cascade, clock and FPU are edges on every PC.
ELCR_MASTER = cython.declare(uint8_t, 0xF8)
ELCR_SLAVE = cython.declare(uint8_t, 0xDE)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def priority(chip: cython.pointer(kvm_pic_state), mask: uint8_t) -> cython.int:
    """How far the most urgent line of `mask` is from the highest priority, 0 to 7; 8: none."""
    distance: cython.int
    for distance in range(8):
        if mask >> ((distance + chip.priority_add) & 7) & 1:
            return distance
    return 8


@cython.final
@cython.cclass
class Pic:
    """Lines 0 to 15 in, one output. Ports 0x20, 0x21, 0xa0, 0xa1, 0x4d0 and 0x4d1."""

    def __cinit__(self):
        self.reset()

    @cython.ccall
    @cython.nogil
    @cython.exceptval(check=False)
    def reset(self) -> cython.void:
        """As at power-up: nothing comes out before it has been initialized."""
        memset(self.chips, 0, cython.sizeof(self.chips))
        self.chips[0].elcr_mask = ELCR_MASTER
        self.chips[1].elcr_mask = ELCR_SLAVE
        self.chips[0].imr = 0xFF
        self.chips[1].imr = 0xFF
        self.intr = False
        self.ended = 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def request(self, chip: cython.pointer(kvm_pic_state)) -> cython.int:
        """The line this chip wants served before those in service, or -1."""
        served: uint8_t = chip.isr
        if chip.special_mask:
            served &= ~chip.imr
        if chip.special_fully_nested_mode and chip == cython.address(self.chips[0]):
            served &= ~(1 << CASCADE)
        wanted: cython.int = priority(chip, chip.irr & ~chip.imr)
        if wanted < priority(chip, served):
            return (wanted + chip.priority_add) & 7
        return -1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def update(self) -> cython.void:
        """Carry the slave's output to the master, and the master's to `intr`."""
        master: cython.pointer(kvm_pic_state) = cython.address(self.chips[0])
        if self.request(cython.address(self.chips[1])) >= 0:
            master.irr |= 1 << CASCADE
        else:
            master.irr &= ~(1 << CASCADE)
        self.intr = self.request(master) >= 0

    @cython.ccall
    @cython.nogil
    @cython.exceptval(check=False)
    def output(self) -> cython.bint:
        """Whether an interrupt is wanted."""
        return self.intr

    @cython.ccall
    @cython.nogil
    @cython.exceptval(check=False)
    def set_line(self, irq: cython.uint, level: cython.bint) -> cython.void:
        """Raise or lower line `irq`, 0 to 15. Line 2 is the slave's and stays so."""
        if irq > 15 or irq == 2:
            return
        chip: cython.pointer(kvm_pic_state) = cython.address(self.chips[irq >> 3])
        bit: uint8_t = 1 << (irq & 7)
        if level:
            if chip.elcr & bit or not chip.last_irr & bit:
                chip.irr |= bit
            chip.last_irr |= bit
        else:
            if chip.elcr & bit:
                chip.irr &= ~bit
            chip.last_irr &= ~bit
        self.update()

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def take(self, chip: cython.pointer(kvm_pic_state), irq: cython.int) -> cython.void:
        """Line `irq` goes into service, or straight through it with automatic EOI."""
        bit: uint8_t = 1 << irq
        if not chip.elcr & bit:
            chip.irr &= ~bit
        chip.isr |= bit
        if chip.auto_eoi:
            if chip.rotate_on_auto_eoi:
                chip.priority_add = (irq + 1) & 7
            self.clear(chip, irq)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def clear(self, chip: cython.pointer(kvm_pic_state), irq: cython.int) -> cython.void:
        bit: uint8_t = 1 << irq
        if chip.isr & bit:
            chip.isr &= ~bit
            self.ended |= cython.cast(uint32_t, bit) << (0 if chip == cython.address(self.chips[0]) else 8)

    @cython.ccall
    @cython.nogil
    @cython.exceptval(check=False)
    def acknowledge(self) -> cython.int:
        """The processor's acknowledge cycles: the vector. Line 7 of a chip stands for a request that went away."""
        master: cython.pointer(kvm_pic_state) = cython.address(self.chips[0])
        slave: cython.pointer(kvm_pic_state) = cython.address(self.chips[1])
        vector: cython.int
        irq: cython.int = self.request(master)
        if irq < 0:
            return master.irq_base + SPURIOUS
        self.take(master, irq)
        if irq == CASCADE:
            irq = self.request(slave)
            if irq >= 0:
                self.take(slave, irq)
            else:
                irq = SPURIOUS
            vector = slave.irq_base + irq
        else:
            vector = master.irq_base + irq
        self.update()
        return vector

    @cython.ccall
    @cython.nogil
    @cython.exceptval(check=False)
    def take_ended(self) -> uint32_t:
        """The lines whose service ended since the last call, a bit each."""
        ended: uint32_t = self.ended
        self.ended = 0
        return ended

    # Ports

    @cython.ccall
    @cython.nogil
    @cython.exceptval(check=False)
    def claims(self, port: cython.uint) -> cython.bint:
        return port & ~0x81 == 0x20 or port & ~1 == 0x4D0

    @cython.ccall
    @cython.nogil
    @cython.exceptval(check=False)
    def read(self, port: cython.uint) -> uint8_t:
        """A claimed port. After a poll command this is an acknowledge; bit 7 says if there was a request."""
        if port & ~1 == 0x4D0:
            return self.chips[port & 1].elcr
        chip: cython.pointer(kvm_pic_state) = cython.address(self.chips[port >> 7 & 1])
        if chip.poll:
            chip.poll = 0
            irq: cython.int = self.request(chip)
            if irq < 0:
                return SPURIOUS
            self.take(chip, irq)
            self.update()
            return 0x80 | irq
        if port & 1:
            return chip.imr
        return chip.isr if chip.read_reg_select else chip.irr

    @cython.ccall
    @cython.nogil
    @cython.exceptval(check=False)
    def write(self, port: cython.uint, value: uint8_t) -> cython.void:
        """A claimed port."""
        chip: cython.pointer(kvm_pic_state)
        if port & ~1 == 0x4D0:
            chip = cython.address(self.chips[port & 1])
            chip.elcr = value & chip.elcr_mask
            chip.irr = (chip.irr & ~chip.elcr) | (chip.last_irr & chip.elcr)
        else:
            chip = cython.address(self.chips[port >> 7 & 1])
            if port & 1:
                self.data(chip, value)
            elif value & 0x10:
                self.initialize(chip)
                chip.init4 = value & 1
            else:
                self.command(chip, value)
        self.update()

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def initialize(self, chip: cython.pointer(kvm_pic_state)) -> cython.void:
        """ICW1. Edges are forgotten: a line that is up must fall and rise. Levels are not."""
        irq: cython.int
        chip.irr &= chip.elcr
        chip.imr = 0
        for irq in range(8):
            self.clear(chip, irq)
        chip.priority_add = 0
        chip.special_mask = 0
        chip.read_reg_select = 0
        chip.poll = 0
        chip.special_fully_nested_mode = 0
        chip.auto_eoi = 0
        chip.rotate_on_auto_eoi = 0
        chip.init_state = 1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def data(self, chip: cython.pointer(kvm_pic_state), value: uint8_t) -> cython.void:
        """ICW2 to ICW4 after an ICW1, else OCW1, the mask."""
        if chip.init_state == 0:
            chip.imr = value
        elif chip.init_state == 1:
            chip.irq_base = value & 0xF8
            chip.init_state = 2
        elif chip.init_state == 2:
            chip.init_state = 3 if chip.init4 else 0
        else:
            chip.special_fully_nested_mode = value >> 4 & 1
            chip.auto_eoi = value >> 1 & 1
            chip.init_state = 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def command(self, chip: cython.pointer(kvm_pic_state), value: uint8_t) -> cython.void:
        """OCW2 and OCW3."""
        if not value & 8:
            self.end(chip, value)
            return
        if value & 4:
            chip.poll = 1
        if value & 2:
            chip.read_reg_select = value & 1
        if value & 0x40:
            chip.special_mask = value >> 5 & 1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def end(self, chip: cython.pointer(kvm_pic_state), value: uint8_t) -> cython.void:
        """OCW2: bit 7 rotates, bit 6 names a line (bits 0 to 2), bit 5 ends its service."""
        rotate: cython.bint = value & 0x80 != 0
        named: cython.bint = value & 0x40 != 0
        irq: cython.int = value & 7
        if not named:
            if not value & 0x20:
                chip.rotate_on_auto_eoi = rotate
                return
            # In special mask mode a masked line's service is ended by name only.
            distance: cython.int = priority(chip, chip.isr & ~chip.imr if chip.special_mask else chip.isr)
            if distance == 8:
                return
            irq = (distance + chip.priority_add) & 7
        if value & 0x20:
            self.clear(chip, irq)
        if rotate:
            chip.priority_add = (irq + 1) & 7

    # State

    def state(self, index: cython.uint) -> bytes:
        """struct kvm_pic_state of chip 0 or 1: 16 bytes."""
        if index > 1:
            raise BadInput(f"there is no PIC {index}; 0 is the master, 1 the slave")
        return cython.cast(cython.p_uchar, cython.address(self.chips[index]))[: cython.sizeof(kvm_pic_state)]

    def restore(self, index: cython.uint, data: bytes) -> None:
        """The inverse; values that no chip can have are brought into range. Raises BadInput."""
        if index > 1:
            raise BadInput(f"there is no PIC {index}; 0 is the master, 1 the slave")
        if len(data) != cython.sizeof(kvm_pic_state):
            raise BadInput(f"PIC state of {len(data)} bytes; it must be {cython.sizeof(kvm_pic_state)}")
        chip: cython.pointer(kvm_pic_state) = cython.address(self.chips[index])
        memcpy(chip, cython.cast(cython.p_uchar, data), cython.sizeof(kvm_pic_state))
        chip.elcr_mask = ELCR_SLAVE if index else ELCR_MASTER
        chip.elcr &= chip.elcr_mask
        chip.irr = (chip.irr & ~chip.elcr) | (chip.last_irr & chip.elcr)
        chip.priority_add &= 7
        chip.irq_base &= 0xF8
        chip.read_reg_select &= 1
        chip.poll = chip.poll != 0
        chip.special_mask = chip.special_mask != 0
        chip.init_state &= 3
        chip.auto_eoi = chip.auto_eoi != 0
        chip.rotate_on_auto_eoi = chip.rotate_on_auto_eoi != 0
        chip.special_fully_nested_mode = chip.special_fully_nested_mode != 0
        chip.init4 = chip.init4 != 0
        self.update()
