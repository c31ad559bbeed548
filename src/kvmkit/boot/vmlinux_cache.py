"""Unpacked kernels, kept by what the bzImage holds, so that only a kernel's first boot pays for unpacking.

    vmlinux/<hash>                   the ELF file; the hash is BLAKE2b of the bzImage
    vmlinux/by-file/<file's stat>    a link to it: hashing 14 MiB takes longer than everything else in a boot

The second name holds device, inode, length and both times. A file can't change without its change time's moving,
except within one tick of the clock, so a file that has just been written gets no such link yet.
"""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path

from kvmkit.errors import HostError
from kvmkit.paths import cache_dir

KEPT = 8
"""Kernels that stay; the one not used for longest goes first. Each takes some 50 MiB."""
TICK_NS = 2_000_000_000
"""A generous bound on the granularity of a file system's times."""


class VmlinuxCache:
    """The cache in the user's cache directory. One that can't be used (no home, read-only, full) holds nothing."""

    def __init__(self) -> None:
        self.root: Path | None = None
        try:
            root = cache_dir() / "vmlinux"
            (root / "by-file").mkdir(parents=True, exist_ok=True)
            self.root = root
        except (HostError, OSError):
            pass

    def find(self, file: os.stat_result) -> memoryview | None:
        """The vmlinux of the bzImage that `file` describes, if it was seen before."""
        if self.root is None:
            return None
        return _map(self.root / "by-file" / _name(file))

    def find_content(self, file: os.stat_result, content: memoryview) -> memoryview | None:
        """The same by the bzImage's bytes: finds it again when the file was copied or touched."""
        if self.root is None:
            return None
        key = _hash(content)
        found = _map(self.root / key)
        if found is not None:
            self._link(file, key)
        return found

    def store(self, file: os.stat_result, content: memoryview, vmlinux: bytes) -> None:
        """Keep what `content`, the bytes of the bzImage that `file` describes, unpacks to."""
        if self.root is None:
            return
        key = _hash(content)
        temporary = self.root / f".{key}.{os.urandom(4).hex()}"
        try:
            with open(temporary, "xb") as out:
                out.write(vmlinux)
                out.flush()
                os.fsync(out.fileno())
            os.rename(temporary, self.root / key)
        except OSError:
            temporary.unlink(missing_ok=True)
            return
        self._link(file, key)
        self._prune()

    def forget(self, file: os.stat_result) -> None:
        """Remove an entry that turned out to be no kernel."""
        if self.root is None:
            return
        link = self.root / "by-file" / _name(file)
        try:
            (self.root / Path(os.readlink(link)).name).unlink(missing_ok=True)
            link.unlink(missing_ok=True)
        except OSError:
            pass  # there is no such entry, or the cache is read-only

    def _link(self, file: os.stat_result, key: str) -> None:
        if time.time_ns() - max(file.st_ctime_ns, file.st_mtime_ns) < TICK_NS:
            return
        assert self.root is not None
        try:
            os.symlink(f"../{key}", self.root / "by-file" / _name(file))
        except OSError:
            pass  # another process was faster, or the cache is read-only

    def _prune(self) -> None:
        assert self.root is not None
        try:
            kept = [path for path in self.root.iterdir() if path.is_file() and not path.name.startswith(".")]
            kept.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
            for path in kept[KEPT:]:
                path.unlink(missing_ok=True)
            for link in (self.root / "by-file").iterdir():
                if not link.exists():
                    link.unlink(missing_ok=True)
            for path in self.root.glob(".*"):
                # What a process that was killed has left behind; an hour is more than any store takes.
                if time.time() - path.stat().st_mtime > 3600:
                    path.unlink(missing_ok=True)
        except OSError:
            pass  # another process is pruning


def _name(file: os.stat_result) -> str:
    return f"{file.st_dev:x}-{file.st_ino:x}-{file.st_size:x}-{file.st_mtime_ns:x}-{file.st_ctime_ns:x}"


def _hash(content: memoryview) -> str:
    from hashlib import blake2b  # loads OpenSSL: not on the way of a kernel that is found by its file

    return blake2b(content, digest_size=32).hexdigest()


def _map(path: Path) -> memoryview | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        size = os.fstat(fd).st_size
        if not size:
            return None
        try:
            os.utime(fd)  # when it was used last, for the pruning
        except OSError:
            pass
        return memoryview(mmap.mmap(fd, size, flags=mmap.MAP_PRIVATE | mmap.MAP_POPULATE, prot=mmap.PROT_READ))
    except OSError:
        return None
    finally:
        os.close(fd)
