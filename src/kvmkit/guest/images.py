"""Guest images by name: built on first use, kept in the cache, replaced whole or not at all.

    <cache>/images/<name>/<key>/    vmlinuz  initrd  image.json
    <cache>/images/<name>/<key>.lock

The key tells what made the image (recipe and agent), so a newer kvmkit builds anew.
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

from kvmkit.errors import BadInput, HostError
from kvmkit.guest.agent_build import source_key
from kvmkit.guest.progress import Progress, Silent
from kvmkit.paths import cache_dir

FORMAT = 1
NAMES = ("debian",)


class ImageFile(msgspec.Struct, frozen=True):
    size: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True):
    """image.json."""

    format: int
    release: str
    append: str
    packages: dict[str, str]
    files: dict[str, ImageFile]


class GuestImage(msgspec.Struct, frozen=True):
    kernel: Path
    initrd: Path
    release: str  # what `uname -r` says in it
    append: str  # kernel parameters it wants, without those that depend on the machine
    packages: dict[str, str]  # name -> version of what it is made of


def ensure(name: str = "debian", progress: Progress | None = None) -> GuestImage:
    """The image, built first if it is not there or damaged. While another process builds it, wait for that.

    BadInput: no such image. HostError: it can't be built; nothing half-made is left.
    """
    directory = _directory(name)
    image = _load(directory)
    if image is None:
        progress = progress or Silent()
        directory.parent.mkdir(parents=True, exist_ok=True)
        with _locked(directory.with_name(directory.name + ".lock"), progress), _terminable():
            image = _load(directory) or _build(directory, progress)
    return image


def verify(name: str = "debian") -> list[str]:
    """Read the whole image and compare with its checksums. Returns what is wrong, a line each; [] is good."""
    directory = _directory(name)
    manifest = _manifest(directory)
    if manifest is None:
        return [f"{directory}: no image, or one that can't be read"]
    wrong = []
    for file, expected in manifest.files.items():
        try:
            if _sha256((directory / file).read_bytes()) != expected.sha256:
                wrong.append(f"{directory / file}: damaged: its SHA-256 is not the one noted when it was built")
        except OSError as error:
            wrong.append(f"{directory / file}: {error.strerror}")
    return wrong


def remove(name: str = "debian") -> None:
    """Forget the image; the next `ensure` builds it anew, from the packages of that day."""
    directory = _directory(name)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with _locked(directory.with_name(directory.name + ".lock"), Silent()):
        _remove_tree(directory)


def _directory(name: str) -> Path:
    if name not in NAMES:
        raise BadInput(f"there is no guest image {name!r}; known: {', '.join(NAMES)} (or give --kernel and --initrd)")
    return cache_dir() / "images" / name / _key()


def _key() -> str:
    from kvmkit.guest.recipe import RECIPE

    return f"{FORMAT}.{RECIPE}-{source_key()}"


def _manifest(directory: Path) -> Manifest | None:
    try:
        manifest = msgspec.json.decode((directory / "image.json").read_bytes(), type=Manifest)
    except (OSError, msgspec.DecodeError):
        return None
    return manifest if manifest.format == FORMAT else None


def _load(directory: Path) -> GuestImage | None:
    """The image if it is complete, as far as sizes tell (reading it all would cost each start some 30 ms)."""
    manifest = _manifest(directory)
    if manifest is None or not {"vmlinuz", "initrd"} <= manifest.files.keys():
        return None
    try:
        if any((directory / file).stat().st_size != noted.size for file, noted in manifest.files.items()):
            return None
    except OSError:
        return None
    return GuestImage(
        directory / "vmlinuz", directory / "initrd", manifest.release, manifest.append, manifest.packages
    )  # fmt: skip


def _build(directory: Path, progress: Progress) -> GuestImage:
    from kvmkit.guest import debian  # only who builds needs it, and what it imports
    from kvmkit.guest.recipe import APPEND

    # We hold the lock, so whatever is here was left by a build that was killed.
    for stale in directory.parent.glob(f".{directory.name}.*"):
        _remove_tree(stale)
    work = directory.with_name(f".{directory.name}.{os.getpid()}")
    try:
        (work / "image").mkdir(parents=True)
        built = debian.build(work, progress)
        progress.step("storing the image")
        contents = {"vmlinuz": built.kernel, "initrd": built.initrd}
        files = {name: ImageFile(len(data), _sha256(data)) for name, data in contents.items()}
        manifest = Manifest(FORMAT, built.release, APPEND, built.packages, files)
        contents["image.json"] = msgspec.json.format(msgspec.json.encode(manifest))
        for name, data in contents.items():
            _write(work / "image" / name, data)
        _sync(work / "image")
        if directory.exists():  # damaged
            _remove_tree(directory)
        (work / "image").rename(directory)
        _sync(directory.parent)
    except OSError as error:
        raise HostError(f"can't build the guest image in {directory.parent}: {error.strerror or error}") from None
    finally:
        _remove_tree(work)
        progress.close()
    image = _load(directory)
    assert image is not None
    return image


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _remove_tree(path: Path) -> None:
    import shutil  # loads compression libraries

    shutil.rmtree(path, ignore_errors=True)


def _sha256(data: bytes) -> str:
    import hashlib  # loads a crypto library, which `run` with an image at hand does not need

    return hashlib.sha256(data).hexdigest()


@contextmanager
def _locked(path: Path, progress: Progress) -> Iterator[None]:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise HostError(f"can't write {path}: {error.strerror}; set KVMKIT_HOME to a directory you own") from None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.step("waiting for another kvmkit to build the guest image")
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


@contextmanager
def _terminable() -> Iterator[None]:
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
