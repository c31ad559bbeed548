"""LZO1X decompression. Every read and copy is checked against its buffer, so that no input can do harm.

Source: Documentation/staging/lzo.rst of Linux, which describes the stream as its decoder reads it.
"""

import cython
from cython.cimports.libc.stdint import int64_t, uint8_t
from cython.cimports.libc.string import memcpy


def decompress(data, size: cython.Py_ssize_t) -> bytes:
    """One LZO1X stream whose output is exactly `size` bytes. Raises ValueError when it is anything else."""
    source: cython.const[cython.uchar][:] = memoryview(data).cast("B")
    length: int64_t = source.shape[0]
    if length < 3 or size < 0:
        raise ValueError("LZO data is truncated")
    out = bytearray(max(size, 1))
    target: cython.uchar[:] = out
    written: int64_t
    with cython.nogil:
        written = _decode(cython.address(source[0]), length, cython.address(target[0]), size)
    if written == OVERRUN:
        raise ValueError("LZO data is truncated")
    if written == BAD_DISTANCE:
        raise ValueError("LZO data refers to bytes before its start")
    if written != size:
        raise ValueError("LZO data does not give the length it promised")
    return bytes(out) if size else b""


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _extended(source: cython.pointer(cython.const[uint8_t]), length: int64_t, at: cython.pointer(int64_t)) -> int64_t:
    """The rest of a long length: 255 for each zero byte, then a byte that is not zero. Negative: the data ended."""
    total: int64_t = 0
    while at[0] < length:
        byte: uint8_t = source[at[0]]
        at[0] += 1
        if byte:
            return total + byte
        total += 255
    return -1


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
@cython.boundscheck(False)
def _decode(
    source: cython.pointer(cython.const[uint8_t]), length: int64_t, target: cython.pointer(uint8_t), size: int64_t
) -> int64_t:
    at: int64_t = 0
    out: int64_t = 0
    # What was copied last: 0 to 3 literals behind a match, or 4 for a run of literals of its own.
    state: cython.int = 0
    literals: int64_t = 0
    code: cython.int = source[0]
    count: int64_t = 0
    distance: int64_t = 0
    low: int64_t = 0
    more: int64_t = 0
    i: int64_t = 0

    if code > 17:
        at = 1
        literals = code - 17
        if literals > length - at:
            return OVERRUN
        if literals > size - out:
            return TOO_LONG
        memcpy(target, source + at, literals)
        at += literals
        out += literals
        state = cython.cast(cython.int, literals) if literals < 4 else 4

    while True:
        if at >= length:
            return OVERRUN
        code = source[at]
        at += 1
        if code < 16 and state == 0:
            literals = code
            if literals == 0:
                more = _extended(source, length, cython.address(at))
                if more < 0:
                    return OVERRUN
                literals = 15 + more
            literals += 3
            if literals > length - at:
                return OVERRUN
            if literals > size - out:
                return TOO_LONG
            memcpy(target + out, source + at, literals)
            at += literals
            out += literals
            state = 4
            continue

        if code >= 64:
            if at >= length:
                return OVERRUN
            count = 3 + ((code >> 5) & 1) if code < 128 else 5 + ((code >> 5) & 3)
            low = code & 3
            distance = (cython.cast(int64_t, source[at]) << 3) + ((code >> 2) & 7) + 1
            at += 1
        elif code >= 16:
            count = code & (31 if code >= 32 else 7)
            if count == 0:
                more = _extended(source, length, cython.address(at))
                if more < 0:
                    return OVERRUN
                count = (31 if code >= 32 else 7) + more
            count += 2
            if length - at < 2:
                return OVERRUN
            low = source[at] | (cython.cast(int64_t, source[at + 1]) << 8)
            at += 2
            distance = (low >> 2) + 1
            if code < 32:
                distance += 16383 + (cython.cast(int64_t, code & 8) << 11)
                if distance == 16384:
                    return out
            low &= 3
        else:
            if at >= length:
                return OVERRUN
            low = code & 3
            distance = (cython.cast(int64_t, source[at]) << 2) + (code >> 2) + 1
            at += 1
            count = 2
            if state == 4:
                count = 3
                distance += 2048

        if distance > out:
            return BAD_DISTANCE
        if count > size - out:
            return TOO_LONG
        # Source and target overlap when the distance is short: that is how a run is written.
        for i in range(count):
            target[out + i] = target[out + i - distance]
        out += count

        state = cython.cast(cython.int, low)
        if low > length - at:
            return OVERRUN
        if low > size - out:
            return TOO_LONG
        for i in range(low):
            target[out + i] = source[at + i]
        at += low
        out += low
