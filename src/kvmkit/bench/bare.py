"""The least a VMM can do: enter the guest again after each exit. What this host's KVM itself costs."""

import cython
from cython.cimports.kvmkit.accel.kvm import uapi
from cython.cimports.kvmkit.accel.kvm.vcpu import KvmVcpu
from cython.cimports.libc.errno import EINTR, errno
from cython.cimports.libc.stdint import uint8_t
from cython.cimports.posix.unistd import write

from kvmkit.bench.kernel import DEBUG_EXIT as _DEBUG_EXIT
from kvmkit.bench.kernel import SERIAL as _SERIAL
from kvmkit.errors import KvmkitError


def reenter(vcpu: KvmVcpu, out: cython.int) -> int:
    """Run `vcpu` until it writes to the debug exit port; what it says on its serial port goes to descriptor `out`.

    Returns the number of port and memory exits. Raises KvmkitError when the guest leaves for another reason.
    """
    fd: cython.int = vcpu.fd
    serial: cython.int = _SERIAL
    end: cython.int = _DEBUG_EXIT
    count: cython.long = 0
    failed: cython.int = 0
    page = vcpu.page
    if page == cython.NULL:
        raise KvmkitError("this vCPU is closed")
    with cython.nogil:
        while True:
            if uapi.ioctl(fd, uapi.KVM_RUN, cython.cast(cython.ulong, 0)) < 0:
                if errno == EINTR:
                    continue
                failed = errno
                break
            if page.exit_reason == uapi.KVM_EXIT_IO:
                count += 1
                if page.io.port == serial:
                    if write(out, cython.cast(cython.pointer(uint8_t), page) + page.io.data_offset, 1) < 0:
                        failed = errno
                        break
                elif page.io.port == end:
                    break
            elif page.exit_reason == uapi.KVM_EXIT_MMIO:
                count += 1
            else:
                failed = -1
                break
    if failed:
        raise KvmkitError(f"the guest left for reason {page.exit_reason}" if failed < 0 else f"KVM_RUN: error {failed}")
    return count
