"""Where guest RAM comes from: ordinary pages, reserved huge pages, transparent ones, or a file in a given place.

Reserved huge pages are promised by the kernel when they are mapped (Documentation/admin-guide/mm/hugetlbpage.rst), so
a guest that has started never misses one. What is missing is told before that, with the command that mends it.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from kvmkit.errors import BadInput, HostError
from kvmkit.memory.ram import HOLE, GuestMemory

MIB = 1 << 20
PAGE = 4096
POOLS = Path("/sys/kernel/mm/hugepages")
TRANSPARENT = Path("/sys/kernel/mm/transparent_hugepage")
MFD_HUGE_SHIFT = 26
SIZES = {"2M": 2 * MIB, "1G": 1 << 30}
CHOICES = ("default", *SIZES, "transparent")


def allocate(
    size: int,
    *,
    hugepages: str = "",
    path: str = "",
    preallocate: bool = False,
    shared: bool = False,
    behind: int = 0,
    below: int = HOLE,
) -> GuestMemory:
    """Guest RAM of `size` bytes. `hugepages`: '' or one of CHOICES; `path`: a directory (of hugetlbfs, as a rule) or a
    file to take it from; `shared`: other processes are to map it; `behind`: bytes of files that are to stand behind it;
    `below`: how much of it may be below 4 GiB. Raises BadInput or HostError, in a line, when it can't be had."""
    if behind and (path or hugepages not in ("", "transparent")):
        raise BadInput("--pmem goes with RAM of ordinary pages: leave the huge pages away")
    if path:
        return _from_path(size, path, preallocate, below)
    if hugepages == "transparent":
        _check_transparent()  # ordinary memory has them wherever the kernel gives any
    if hugepages in ("", "transparent"):
        return GuestMemory(size, shared=shared, populate=preallocate, behind=behind, below=below)
    page = page_size(hugepages)
    check(size, hugepages)
    flags = os.MFD_CLOEXEC | os.MFD_HUGETLB | (page.bit_length() - 1) << MFD_HUGE_SHIFT
    try:
        fd = os.memfd_create("kvmkit-ram", flags)
    except OSError as error:
        raise HostError(f"--hugepages={show(page)}: the kernel refuses them: {error.strerror}") from error
    return GuestMemory(size, fd=fd, page=page, populate=preallocate, below=below)


def check(size: int, hugepages: str = "", path: str = "") -> None:
    """Raise when `allocate` with the same arguments would, without taking anything."""
    if path:
        page = _path_page(path)
        if page > PAGE:
            _check_free(size, page, f"-mem-path {path}")
    elif hugepages == "transparent":
        _check_transparent()
    elif hugepages:
        _check_free(size, page_size(hugepages), f"--hugepages={show(page_size(hugepages))}")


def check_choice(hugepages: str) -> None:
    """BadInput for what is none of CHOICES."""
    if hugepages not in CHOICES:
        raise BadInput(f"--hugepages={hugepages}: is 2M, 1G or transparent; before another word, write --hugepages=2M")


def page_size(hugepages: str) -> int:
    """Bytes of a reserved page; BadInput for what is no choice, HostError for a size this kernel does not have."""
    check_choice(hugepages)
    sizes = sorted(int(one.name[10:-2]) << 10 for one in POOLS.glob("hugepages-*kB")) if POOLS.is_dir() else []
    if not sizes:
        raise HostError("--hugepages: this kernel has no huge pages, or a container hides them")
    if hugepages == "default":
        return _default() or sizes[0]
    if SIZES[hugepages] not in sizes:
        has = ", ".join(map(show, sizes))
        raise HostError(f"--hugepages={hugepages}: this kernel has no pages of that size, only of {has}")
    return SIZES[hugepages]


def _default() -> int:
    for line in _text(Path("/proc/meminfo")).splitlines():
        if line.startswith("Hugepagesize:"):
            return int(line.split()[1]) << 10
    return 0


def show(page: int) -> str:
    return f"{page >> 30}G" if page >> 30 else f"{page >> 20}M" if page >> 20 else f"{page >> 10}K"


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _pool(page: int) -> tuple[int, int]:
    """(pages reserved in all, pages that nobody has or was promised)."""
    directory = POOLS / f"hugepages-{page >> 10}kB"
    total, free, promised = (
        int(_text(directory / name) or 0) for name in ("nr_hugepages", "free_hugepages", "resv_hugepages")
    )
    return total, free - promised


def _check_free(size: int, page: int, what: str) -> None:
    needed = -(-size // page)
    total, free = _pool(page)
    if free >= needed:
        return
    altogether = (total - free + needed) * page >> 20  # what others hold stays theirs
    other = "" if page == _default() else f" --size {show(page)}"
    raise HostError(
        f"{what}: {needed} huge pages of {show(page)} are needed and {max(free, 0)} are free, {needed - max(free, 0)}"
        f" are missing: sudo kvmkit host hugepages enable --memory {altogether}M{other}"
    )


def _from_path(size: int, path: str, preallocate: bool, below: int) -> GuestMemory:
    page = _path_page(path)
    check(size, path=path)
    try:
        if os.path.isdir(path):
            name = os.path.join(path, f".kvmkit-ram-{os.getpid()}-{os.urandom(4).hex()}")
            fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            os.unlink(name)
        else:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if os.fstat(fd).st_size > -(-size // page) * page:
                os.close(fd)
                raise BadInput(f"-mem-path {path}: the file is larger than the guest's memory")
    except OSError as error:
        mend = " (its group is kvm: sudo kvmkit host permissions enable)" if error.errno == errno.EACCES else ""
        raise HostError(f"-mem-path {path}: no file can be made there: {error.strerror}{mend}") from error
    return GuestMemory(size, fd=fd, page=page, populate=preallocate, below=below)


def _path_page(path: str) -> int:
    """The size of the pages of the file system at `path`, which or whose directory has to be there."""
    there = path if os.path.exists(path) else os.path.dirname(path) or "."
    if path.startswith("/dev/hugepages") and not os.path.isdir(path):
        raise HostError(f"-mem-path {path}: is not there: sudo kvmkit host hugepages enable --memory 1G")
    try:
        found = os.statvfs(there)
    except OSError as error:
        raise BadInput(f"-mem-path {path}: {error.strerror}") from error
    return found.f_bsize if found.f_bsize in SIZES.values() else PAGE


def _check_transparent() -> None:
    if "[never]" in (enabled := _text(TRANSPARENT / "enabled")) or not enabled:
        mend = "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled"
        raise HostError(f"--hugepages=transparent: they are off in this kernel: {mend}")
