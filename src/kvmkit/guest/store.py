"""Directories that are made whole or not at all: by one process at a time, checked by what image.json notes.

<root>/<name>/            the directory, renamed into place
<root>/.<name>.<pid>/     while it is made; what a killed process left goes with the next one
<root>/<name>.lock
"""

from __future__ import annotations

import fcntl
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import msgspec

from kvmkit.errors import HostError
from kvmkit.guest.progress import Progress, Silent

FORMAT = 2
MANIFEST = "image.json"


class ImageFile(msgspec.Struct, frozen=True):
    size: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """image.json."""

    format: int = FORMAT
    release: str = ""
    """What `uname -r` says in it."""
    append: str = ""
    packages: dict[str, str] = {}
    files: dict[str, ImageFile] = {}
    command: tuple[str, ...] = ()
    """What a container image would run."""
    env: tuple[str, ...] = ()
    cwd: str = ""
    user: str = ""
    """How it would run that, and what is run in its place: NAME=VALUE, a directory, who."""
    key: str = ""
    """What it was built of, by which it is known again."""
    source: str = ""
    """What it was made of, for people."""
    created: float = 0.0


def load(directory: Path, needed: frozenset[str]) -> Manifest | None:
    """The manifest, if what it notes is there: all files of their sizes.

    Their contents are read only where a file is younger than the manifest, which was written last: it would cost each
    start time.
    """
    manifest = read(directory)
    if manifest is None or not needed <= manifest.files.keys():
        return None
    try:
        written = (directory / MANIFEST).stat().st_mtime_ns
        found = {name: (directory / name).stat() for name in manifest.files}
        if any(found[name].st_size != noted.size for name, noted in manifest.files.items()):
            return None
        changed = [name for name, stat in found.items() if stat.st_mtime_ns > written]
        if any(sha256(directory / name) != manifest.files[name].sha256 for name in changed):
            return None
        if changed and os.access(directory / MANIFEST, os.W_OK):
            os.utime(directory / MANIFEST)  # they are what they were
    except OSError:
        return None
    return manifest


def read(directory: Path) -> Manifest | None:
    try:
        manifest = msgspec.json.decode((directory / MANIFEST).read_bytes(), type=Manifest)
    except (OSError, msgspec.DecodeError):
        return None
    if manifest.format != FORMAT or any("/" in name or name.startswith(".") for name in manifest.files):
        return None
    return manifest


def wrong(directory: Path) -> list[str]:
    """Read all of it and compare with its checksums. A line for each thing that is wrong."""
    manifest = read(directory)
    if manifest is None:
        return [f"{directory}: no image, or one that can't be read"]
    found = []
    for name, noted in manifest.files.items():
        try:
            if sha256(directory / name) != noted.sha256:
                found.append(f"{directory / name}: damaged: its SHA-256 is not the one noted when it was built")
        except OSError as error:
            found.append(f"{directory / name}: {error.strerror}")
    return found


@contextmanager
def making(directory: Path, progress: Progress | None = None) -> Iterator[Path]:
    """A work directory with a directory `image` in it, which becomes `directory` by `finish`. Hold `locked` around it.

    Whatever is left in it at the end is removed. HostError: the file system refuses.
    """
    # We hold the lock, so whatever is here was left by a build that was killed.
    for stale in directory.parent.glob(f".{directory.name}.*"):
        remove_tree(stale)
    work = directory.with_name(f".{directory.name}.{os.getpid()}")
    try:
        (work / "image").mkdir(parents=True)
        with _guarded(work):
            yield work
    except OSError as error:
        raise HostError(f"can't build the guest image in {directory.parent}: {error.strerror or error}") from None
    finally:
        remove_tree(work)
        if progress is not None:
            progress.close()


@contextmanager
def _guarded(path: Path) -> Iterator[None]:
    """Have a process beside this one that removes the path if this one is killed."""
    import subprocess  # not for those who have the image already

    script = 'read -r _ && exit; for _ in 1 2 3 4 5 6; do rm -rf "$1"; sleep 0.5; done'
    guard = subprocess.Popen(
        ["/bin/sh", "-c", script, "sh", str(path)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        yield
    finally:
        guard.communicate(b"done\n")


def finish(work: Path, directory: Path, manifest: Manifest) -> Manifest:
    """Note what is in `work`/image, and put it in place of what is at `directory`. Returns the manifest as stored."""
    image = work / "image"
    files = {}
    for path in sorted(image.iterdir()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        files[path.name] = ImageFile(path.stat().st_size, sha256(path))
    manifest = msgspec.structs.replace(manifest, files=files)
    write(image / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest)))
    sync(image)
    if directory.exists():
        remove_tree(directory)
    image.rename(directory)
    sync(directory.parent)
    return manifest


def write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove_tree(path: Path) -> None:
    """What can't be removed stays."""
    import shutil  # loads compression libraries

    shutil.rmtree(path, ignore_errors=True)


def discard(directory: Path) -> None:
    """Remove it; its name is free before anything in it goes. HostError: it can't be, or not all of it."""
    import shutil

    away = directory.with_name(f".{directory.name}.{os.getpid()}")
    try:
        directory.rename(away)
    except OSError as error:
        raise HostError(f"can't remove {directory}: {error.strerror}") from None
    try:
        shutil.rmtree(away)
    except OSError as error:
        raise HostError(
            f"{directory.name} is removed, but not its files in {away}: {error.filename}: {error.strerror}"
        ) from None


def sha256(path: Path) -> str:
    import hashlib  # loads a crypto library, which `run` with an image at hand does not need

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def locked(directory: Path, progress: Progress | None = None) -> Iterator[None]:
    """Hold the directory's lock; while another process does, say so and wait."""
    path = directory.with_name(directory.name + ".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise HostError(f"can't write {path}: {error.strerror}; set KVMKIT_HOME to a directory you own") from None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            (progress or Silent()).step("waiting for another kvmkit to build the guest image")
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM raise, so that what cleans up runs; its default would leave half an image behind."""
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if not ours:
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
