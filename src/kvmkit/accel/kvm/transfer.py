"""State in and out of KVM as bytes: the two directions an ioctl on a structure can have."""

import os

import cython
from cython.cimports.cpython.bytes import PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cython.cimports.kvmkit.accel.kvm import uapi
from cython.cimports.libc.errno import errno

from kvmkit.errors import KvmkitError


@cython.cfunc
@cython.exceptval(-1, check=False)
def refused(what: str) -> cython.int:
    """Raise what errno says about `what`."""
    raise KvmkitError(f"KVM refuses {what}: {os.strerror(errno)}")


@cython.cfunc
def fetch(fd: cython.int, request: cython.ulong, initial: bytes, what: str) -> bytes:
    """The structure that `request` fills, given what it starts as."""
    data = PyBytes_FromStringAndSize(PyBytes_AS_STRING(initial), len(initial))
    if uapi.ioctl(fd, request, PyBytes_AS_STRING(data)) < 0:
        refused(f"to give {what}")
    return data


@cython.cfunc
@cython.exceptval(-1, check=False)
def store(fd: cython.int, request: cython.ulong, data: bytes, what: str) -> cython.int:
    """Hand KVM the structure in `data`."""
    result: cython.int = uapi.ioctl(fd, request, PyBytes_AS_STRING(data))
    if result < 0:
        refused(what)
    return result
