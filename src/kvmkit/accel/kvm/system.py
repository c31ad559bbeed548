"""/dev/kvm itself: what this host's KVM is and can do. Source: Documentation/virt/kvm/api.rst, "system ioctls"."""

import errno
import os

import cython
from cython.cimports.kvmkit.accel.kvm import uapi
from cython.cimports.libc.errno import errno as last_error
from cython.cimports.libc.stdint import uint32_t
from cython.cimports.libc.stdlib import calloc, free

from kvmkit.errors import HostError

DEVICE = "/dev/kvm"
API_VERSION: int = 12
"""The one version there has been since Linux 2.6.22; the kernel's documentation says to refuse any other."""

CAPABILITIES: dict = {
    "IRQCHIP": uapi.KVM_CAP_IRQCHIP,
    "USER_MEMORY": uapi.KVM_CAP_USER_MEMORY,
    "SET_TSS_ADDR": uapi.KVM_CAP_SET_TSS_ADDR,
    "SET_IDENTITY_MAP_ADDR": uapi.KVM_CAP_SET_IDENTITY_MAP_ADDR,
    "EXT_CPUID": uapi.KVM_CAP_EXT_CPUID,
    "MP_STATE": uapi.KVM_CAP_MP_STATE,
    "IRQ_ROUTING": uapi.KVM_CAP_IRQ_ROUTING,
    "SIGNAL_MSI": uapi.KVM_CAP_SIGNAL_MSI,
    "IRQFD": uapi.KVM_CAP_IRQFD,
    "IRQFD_RESAMPLE": uapi.KVM_CAP_IRQFD_RESAMPLE,
    "IOEVENTFD": uapi.KVM_CAP_IOEVENTFD,
    "IOEVENTFD_ANY_LENGTH": uapi.KVM_CAP_IOEVENTFD_ANY_LENGTH,
    "PIT2": uapi.KVM_CAP_PIT2,
    "PIT_STATE2": uapi.KVM_CAP_PIT_STATE2,
    "ADJUST_CLOCK": uapi.KVM_CAP_ADJUST_CLOCK,
    "VCPU_EVENTS": uapi.KVM_CAP_VCPU_EVENTS,
    "DEBUGREGS": uapi.KVM_CAP_DEBUGREGS,
    "XSAVE": uapi.KVM_CAP_XSAVE,
    "XCRS": uapi.KVM_CAP_XCRS,
    "IMMEDIATE_EXIT": uapi.KVM_CAP_IMMEDIATE_EXIT,
    # From here on a host may do without.
    "XSAVE2": uapi.KVM_CAP_XSAVE2,
    "TSC_DEADLINE_TIMER": uapi.KVM_CAP_TSC_DEADLINE_TIMER,
    "MAX_VCPUS": uapi.KVM_CAP_MAX_VCPUS,
    "X2APIC_API": uapi.KVM_CAP_X2APIC_API,
    "NR_MEMSLOTS": uapi.KVM_CAP_NR_MEMSLOTS,
    "READONLY_MEM": uapi.KVM_CAP_READONLY_MEM,
    "X86_SMM": uapi.KVM_CAP_X86_SMM,
    "NESTED_STATE": uapi.KVM_CAP_NESTED_STATE,
    "SPLIT_IRQCHIP": uapi.KVM_CAP_SPLIT_IRQCHIP,
    "TSC_CONTROL": uapi.KVM_CAP_TSC_CONTROL,
    "DIRTY_LOG_RING": uapi.KVM_CAP_DIRTY_LOG_RING,
    "SYNC_REGS": uapi.KVM_CAP_SYNC_REGS,
}
"""KVM_CAP_* by name, and its number; those that the engine can't do without come first."""

REQUIRED: tuple = tuple(CAPABILITIES)[:20]


def _processor() -> tuple:
    """(module that drives this processor's virtualization, whether the processor offers it)."""
    try:
        with open("/proc/cpuinfo") as file:
            text = file.read(8192)
    except OSError:
        text = ""
    flags = text.split("flags", 1)[-1].split("\n", 1)[0].split()
    if "AuthenticAMD" in text or "HygonGenuine" in text:
        return "kvm_amd", "svm" in flags
    return "kvm_intel", "vmx" in flags


def _why_absent(path: str) -> str:
    module, offered = _processor()
    if offered:
        return f"no {path}: load KVM with `sudo modprobe {module}`"
    bit = "SVM" if module == "kvm_amd" else "VT-x"
    return (
        f"no {path}, and this processor shows no {bit}: turn it on in the firmware (or, in a VM, nested virtualization"
        f" on the host above), then `sudo modprobe {module}`; `--accel tcg` works without"
    )


@cython.cclass
class KvmSystem:
    """The open /dev/kvm. Raises HostError, with the command that mends it, when it can't be opened or is too old."""

    def __cinit__(self, path=DEVICE):
        self.fd = -1
        try:
            self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
                raise HostError(_why_absent(path)) from None
            if error.errno in (errno.EACCES, errno.EPERM):
                raise HostError(f"no permission for {path}: `sudo usermod -aG kvm $USER`, then log in again") from None
            raise HostError(f"can't open {path}: {error.strerror}") from None
        version = uapi.ioctl(self.fd, uapi.KVM_GET_API_VERSION, 0)
        if version != API_VERSION:
            self.close()
            raise HostError(f"{path} speaks KVM API version {version}, not {API_VERSION}: this kernel is too old")

    def __dealloc__(self):
        if self.fd >= 0:
            os.close(self.fd)

    def close(self) -> None:
        """Close the device; VMs made from it live on."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def api_version(self) -> int:
        """KVM_GET_API_VERSION."""
        return uapi.ioctl(self.fd, uapi.KVM_GET_API_VERSION, 0)

    def check_extension(self, number: cython.ulong) -> int:
        """KVM_CHECK_EXTENSION of a KVM_CAP_ number: 0 when absent, 1 or a quantity when present."""
        return max(uapi.ioctl(self.fd, uapi.KVM_CHECK_EXTENSION, number), 0)

    def capabilities(self) -> dict:
        """The value of each of CAPABILITIES, by name."""
        return {name: self.check_extension(number) for name, number in CAPABILITIES.items()}

    def mmap_size(self) -> int:
        """Bytes of the area that a vCPU shares with KVM."""
        return uapi.ioctl(self.fd, uapi.KVM_GET_VCPU_MMAP_SIZE, 0)

    def create_vm(self) -> int:
        """A new VM's file descriptor, which is the caller's to close."""
        fd: cython.int
        for _ in range(100):
            fd = uapi.ioctl(self.fd, uapi.KVM_CREATE_VM, 0)
            if fd >= 0:
                return fd
            if last_error != errno.EINTR:  # KVM gives up creating when a signal comes
                break
        raise HostError(f"KVM can't create a VM: {os.strerror(last_error)}")

    def supported_cpuid(self) -> dict:
        """KVM_GET_SUPPORTED_CPUID: {(leaf, subleaf or None where there are none): (eax, ebx, ecx, edx)}."""
        room: cython.int = 64
        i: cython.uint
        while True:
            area: cython.pointer(uapi.kvm_cpuid2) = cython.cast(
                cython.pointer(uapi.kvm_cpuid2),
                calloc(1, cython.sizeof(uapi.kvm_cpuid2) + room * cython.sizeof(uapi.kvm_cpuid_entry2)),
            )
            if area == cython.NULL:
                raise MemoryError
            try:
                area.nent = room
                if uapi.ioctl(self.fd, uapi.KVM_GET_SUPPORTED_CPUID, area) == 0:
                    found: dict = {}
                    for i in range(area.nent):
                        e = cython.address(area.entries[i])
                        indexed = e.flags & uapi.KVM_CPUID_FLAG_SIGNIFCANT_INDEX
                        found[(e.function, e.index if indexed else None)] = (e.eax, e.ebx, e.ecx, e.edx)
                    return found
                if last_error != errno.E2BIG or room > 4096:
                    raise HostError(f"KVM can't list what CPUID it supports: {os.strerror(last_error)}")
            finally:
                free(area)
            room *= 2

    def msr_indices(self) -> list:
        """KVM_GET_MSR_INDEX_LIST: the model-specific registers that make up a vCPU's state."""
        count: uapi.kvm_msr_list
        count.nmsrs = 0
        uapi.ioctl(self.fd, uapi.KVM_GET_MSR_INDEX_LIST, cython.address(count))  # E2BIG, and the right number
        area: cython.pointer(uapi.kvm_msr_list) = cython.cast(
            cython.pointer(uapi.kvm_msr_list),
            calloc(1, cython.sizeof(uapi.kvm_msr_list) + count.nmsrs * cython.sizeof(uint32_t)),
        )
        if area == cython.NULL:
            raise MemoryError
        i: cython.uint
        try:
            area.nmsrs = count.nmsrs
            if uapi.ioctl(self.fd, uapi.KVM_GET_MSR_INDEX_LIST, area) < 0:
                raise HostError(f"KVM can't list its MSRs: {os.strerror(last_error)}")
            return [area.indices[i] for i in range(area.nmsrs)]
        finally:
            free(area)
