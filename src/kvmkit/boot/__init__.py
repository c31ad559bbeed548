"""Put a kernel in guest memory and say how the first vCPU enters it: Linux (bzImage, vmlinux) and multiboot.

`load` checks everything first and writes then; it expects memory that nobody has written to, whose bytes are zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kvmkit.errors import BadInput

from . import bzimage, elf, linux, multiboot
from .files import MAX_KERNEL, Source
from .identify import describe
from .initrd import open_all
from .layout import Layout
from .state import BootState
from .unpack import CannotUnpackError, DamagedError, unpack
from .vmlinux_cache import VmlinuxCache

if TYPE_CHECKING:
    from kvmkit.memory import GuestMemory

__all__ = ["BootState", "load"]


def load(
    memory: GuestMemory,
    kernel: Path,
    *,
    initrd: Sequence[Path | bytes] = (),
    cmdline: str = "",
    rsdp: int = 0,
) -> BootState:
    """Load `kernel` (a bzImage, an ELF vmlinux or a multiboot kernel) with its initrds (multiboot: its modules).

    `rsdp` is the guest physical address of ACPI's root pointer, 0 for none. Raises BadInput in one line when a file
    can't be used or memory is too small; guest memory is then untouched.
    """
    kernel = Path(kernel)
    with Source(kernel, "kernel") as source:
        if source.size > MAX_KERNEL:
            raise BadInput(f"{kernel}: not a kernel: it is larger than {MAX_KERNEL >> 20} MiB")
        try:
            return _load(memory, source, initrd, cmdline, rsdp)
        except OSError as error:
            raise BadInput(f"can't read kernel {kernel}: {error.strerror}") from error


def _load(memory: GuestMemory, source: Source, initrd: Sequence[Path | bytes], cmdline: str, rsdp: int) -> BootState:
    path = source.path
    if bzimage.is_bzimage(source.head):
        return _load_bzimage(memory, source, initrd, cmdline, rsdp)
    header = multiboot.find(source.head)
    if header is not None:
        return multiboot.load(memory, path, source.map(), header, open_all(initrd, any_content=True), cmdline)
    if source.head[:4] != elf.MAGIC:
        raise BadInput(f"{path}: not a bzImage, ELF or multiboot kernel: {describe(source.head)}")
    data = source.map()
    try:
        image = elf.parse(data)
    except elf.BadElfError as error:
        raise BadInput(f"{path}: not a kernel for this machine: {error}") from error
    if image.machine != elf.MACHINE_X86_64:
        raise BadInput(f"{path}: not a kernel for this machine: a 32-bit ELF file without a multiboot header")
    return _start_vmlinux(memory, path, None, data, image, initrd, cmdline, rsdp)


def _load_bzimage(
    memory: GuestMemory, source: Source, initrd: Sequence[Path | bytes], cmdline: str, rsdp: int
) -> BootState:
    path = source.path
    image = bzimage.parse(path, source.head, source.size)
    try:
        data, vmlinux = _vmlinux(source, image)
    except DamagedError as error:
        raise BadInput(f"{path}: the bzImage is damaged: {error}") from None
    except (CannotUnpackError, elf.BadElfError) as error:
        return _start_decompressor(memory, source, image, str(error), initrd, cmdline, rsdp)
    return _start_vmlinux(memory, path, image, data, vmlinux, initrd, cmdline, rsdp)


def _vmlinux(source: Source, image: bzimage.BzImage) -> tuple[memoryview, elf.Elf]:
    """The bytes and headers of the vmlinux in a bzImage, from the cache where it has them."""
    if not image.payload[1]:
        raise CannotUnpackError("it has no payload")
    cache = VmlinuxCache()
    found = cache.find(source.stat)
    if found is None:
        content = source.map()
        found = cache.find_content(source.stat, content)
    if found is not None:
        try:
            return found, _x86_64(found)
        except elf.BadElfError:
            cache.forget(source.stat)  # damaged on disk
    content = source.map()
    offset, length = image.payload
    unpacked = unpack(content[offset : offset + length])
    vmlinux = _x86_64(memoryview(unpacked))
    cache.store(source.stat, content, unpacked)
    return memoryview(unpacked), vmlinux


def _x86_64(data: memoryview) -> elf.Elf:
    image = elf.parse(data)
    if image.machine != elf.MACHINE_X86_64 or image.start < linux.LOWEST_KERNEL:
        raise elf.BadElfError("what it unpacks to is no 64-bit kernel")
    return image


def _start_vmlinux(
    memory: GuestMemory,
    path: Path,
    image: bzimage.BzImage | None,
    data: memoryview,
    vmlinux: elf.Elf,
    initrd: Sequence[Path | bytes],
    cmdline: str,
    rsdp: int,
) -> BootState:
    layout = Layout(memory, path)
    # The header's init_size is more than vmlinux itself: what the kernel takes before it looks at the memory map.
    end = vmlinux.end if image is None else max(vmlinux.end, vmlinux.start + image.init_size)
    layout.require(end)
    layout.add_segments(data, vmlinux.segments, linux.LOWEST_KERNEL, "the first MiB, which a PC needs itself")
    _add_linux(layout, image, end, vmlinux.start, initrd, cmdline, rsdp)
    return _linux_state("linux", vmlinux.entry)


def _start_decompressor(
    memory: GuestMemory,
    source: Source,
    image: bzimage.BzImage,
    reason: str,
    initrd: Sequence[Path | bytes],
    cmdline: str,
    rsdp: int,
) -> BootState:
    layout = Layout(memory, source.path)
    address = linux.decompressor_address(image, source.path)
    offset, length = image.kernel
    end = address + max(image.init_size, length)
    layout.require(end)
    layout.add(address, source.map()[offset : offset + length])
    _add_linux(layout, image, end, address, initrd, cmdline, rsdp)
    return _linux_state("linux-decompressor", address + bzimage.ENTRY_64, reason)


def _add_linux(
    layout: Layout,
    image: bzimage.BzImage | None,
    kernel_end: int,
    kernel_start: int,
    initrd: Sequence[Path | bytes],
    cmdline: str,
    rsdp: int,
) -> None:
    """Everything but the kernel itself, and then write it all."""
    line = linux.encode_cmdline(cmdline, linux.BARE_CMDLINE if image is None else image.cmdline_size)
    addr_max = linux.BARE_INITRD_MAX if image is None else image.initrd_addr_max
    placed = linux.place_initrd(layout, open_all(initrd), kernel_end, addr_max)
    page = linux.zero_page(
        layout.memory, image, cmdline=line, initrd=placed, rsdp=rsdp, code32_start=kernel_start & 0xFFFFFFFF
    )
    linux.add_start(layout, page, line)
    layout.write()


def _linux_state(kind: str, entry: int, note: str = "") -> BootState:
    return BootState(
        kind=kind,
        entry=entry,
        gdt=linux.GDT,
        registers={"rsi": linux.ZERO_PAGE, "rsp": linux.STACK},
        page_table=linux.PAGE_TABLES,
        note=note,
    )
