"""Instructions that the translator leaves to us, read again byte by byte.

Only bytes are read that the translator has read: others could stand on a page that is not there.
"""

import cython
from cython.cimports.kvmkit.accel.tcg.layout import HF_CS64, R_CS, Env
from cython.cimports.libc.stdint import uint32_t, uint64_t


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def is_prefix(byte: uint32_t, long_mode: cython.bint) -> cython.bint:
    """Whether this byte of an instruction is a prefix to it (REX in long mode)."""
    if long_mode and byte & 0xF0 == 0x40:
        return True
    return byte in (0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF2, 0xF3)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def int1_length(env: cython.pointer(Env), byte: code_function) -> cython.int:
    """The bytes of an INT1 (0xF1) at CS:RIP, with its prefixes; 0: something else stands there."""
    address: uint64_t = env.segs[R_CS].base + env.eip
    at: cython.int = 0
    while at < LONGEST and is_prefix(byte(env, address + at), (env.hflags & HF_CS64) != 0):
        at += 1
    return at + 1 if byte(env, address + at) == 0xF1 else 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def is_hypercall(env: cython.pointer(Env), byte: code_function) -> cython.bint:
    """VMCALL (0F 01 C1) or VMMCALL (0F 01 D9)."""
    address: uint64_t = env.segs[R_CS].base + env.eip
    if byte(env, address) != 0x0F or byte(env, address + 1) != 0x01:
        return False
    last: uint32_t = byte(env, address + 2)
    return last == 0xC1 or last == 0xD9


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def is_wrmsr(env: cython.pointer(Env), byte: code_function) -> cython.bint:
    """Whether WRMSR stands at CS:RIP without prefixes: then it is two bytes long."""
    address: uint64_t = env.segs[R_CS].base + env.eip
    return byte(env, address) == 0x0F and byte(env, address + 1) == 0x30


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def port_exit(
    env: cython.pointer(Env), byte: code_function, size: cython.int, length: cython.pointer(cython.int)
) -> uint32_t:
    """What SVM tells of a port instruction at CS:RIP that moves `size` bytes: EXITINFO1 without the port.

    `length` gets the instruction's bytes. Source: AMD APM volume 2, 15.10.2.
    """
    address: uint64_t = env.segs[R_CS].base + env.eip
    long_mode: cython.bint = (env.hflags & HF_CS64) != 0
    wide: cython.bint = (env.hflags & HF_CS32) != 0
    shorter: cython.bint = False
    repeated: cython.bint = False
    segment: uint32_t = DS
    at: cython.int = 0
    code: uint32_t = byte(env, address)
    while is_prefix(code, long_mode) and at < LONGEST:
        if code == 0x67:
            shorter = True
        elif code == 0xF2 or code == 0xF3:
            repeated = True
        elif code == 0x64 or code == 0x65:
            segment = code - 0x60
        elif code & 0xE7 == 0x26:
            segment = code >> 3 & 3
        at += 1
        code = byte(env, address + at)
    string: cython.bint = code & 0xFC == 0x6C
    length[0] = at + (2 if code & 0xFC == 0xE4 else 1)  # IN and OUT with an immediate port have it behind
    information: uint32_t = cython.cast(uint32_t, size) << 4
    if not code & 2:
        information |= 1  # IN
    if string:
        bits: uint32_t = 64 if long_mode else 32 if wide else 16
        if shorter:
            bits = 32 if long_mode or not wide else 16
        information |= 4 | bits // 16 << 7 | segment << 10
        if repeated:
            information |= 8
    return information
