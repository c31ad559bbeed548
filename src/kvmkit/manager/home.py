"""A VM's directory: its spec, its record, its logs, its control socket and its lock.

    <data>/machines/NAME/    vm.json  state.json  lock  control.sock  console.log  vmm.log

It is made whole and renamed into place, and renamed away before it is removed, so that a name is there with all that
belongs to it or not at all. Whoever changes it holds the lock's byte CHANGING; the VM's process holds ALIVE.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from kvmkit.errors import BadInput, HostError, KvmkitError
from kvmkit.manager import events, files, locks, names, record
from kvmkit.manager.record import DIED, Ended, Record
from kvmkit.paths import data_dir

if TYPE_CHECKING:
    from kvmkit.manager.spec import VmSpec

SPEC = "vm.json"
LOCK = "lock"
SOCKET = "control.sock"
CONSOLE = "console.log"
PROCESS = "vmm.log"
DEAD_SECONDS = 86400.0
"""For how long a VM that was to go with its process, and whose process died, is shown."""
CHANGE_SECONDS = 20.0
"""How long another command may take for its change; each takes milliseconds."""


class Busy(KvmkitError):
    """It runs, or somebody else changes it."""


class Home:
    """An open directory of a VM, which stays the same when it is renamed. Close it, or use it in a `with`."""

    def __init__(self, name: str, directory: int, lock: int) -> None:
        self.name = name
        self.directory = directory
        self.lock = lock

    @property
    def path(self) -> Path:
        return root() / self.name

    def close(self) -> None:
        for fd in (self.lock, self.directory):
            if fd >= 0:
                os.close(fd)
        self.lock = self.directory = -1

    def __enter__(self) -> Home:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def running(self) -> bool:
        """Whether its process lives."""
        return locks.held(self.lock, locks.ALIVE)

    def spec(self) -> VmSpec:
        """What it is to be. BadInput when the VM has gone meanwhile."""
        from kvmkit.manager.spec import decode

        try:
            data = files.read(self.directory, SPEC)
        except FileNotFoundError:
            raise names.unknown(self.name, listing()) from None
        return decode(data, str(self.path / SPEC))

    def load(self) -> Record:
        return record.load(self.directory)

    def store(self, noted: Record) -> None:
        record.store(self.directory, noted)

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Hold the lock that keeps two changes apart. Raises Busy; BadInput when the VM has gone meanwhile."""
        if not locks.take(self.lock, locks.CHANGING, CHANGE_SECONDS):
            raise Busy(f"{self.name}: another kvmkit is changing it; try again")
        try:
            if not self._in_place():
                raise names.unknown(self.name, listing())
            yield
        finally:
            locks.release(self.lock, locks.CHANGING)

    def _in_place(self) -> bool:
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self.directory))
        except OSError:
            return False

    def current_name(self) -> str:
        """Its name now: `kvmkit rename` may have given it another."""
        try:
            return os.path.basename(os.readlink(f"/proc/self/fd/{self.directory}"))
        except OSError:
            return self.name

    def claim(self) -> None:
        """Become the VM's process: until this closes, or the process ends. Raises Busy when there is one."""
        with self.changing():
            if not locks.take(self.lock, locks.ALIVE):
                raise Busy(f"{self.name} is running already (see `kvmkit ps`)")
            try:
                os.unlink(SOCKET, dir_fd=self.directory)  # of a process that died
            except FileNotFoundError:
                pass

    def look(self) -> Record:
        """The record, and a death that nobody has noted is noted. `state` is what holds now."""
        noted = self.load()
        if self.running():
            return self.load()  # which its process has written since
        if noted.state in ("created", "ended"):
            return noted
        if not locks.take(self.lock, locks.CHANGING):
            noted.state = "starting"  # somebody is about to run it
            return noted
        try:
            noted = self.load()
            if noted.state not in ("created", "ended") and not self.running():
                noted.ended = self._death(noted)
                noted.state = "ended"
                self.store(noted)
                events.note(self.name, DIED, noted.ended.detail)
            return noted
        except OSError:
            return noted  # a full disk
        finally:
            locks.release(self.lock, locks.CHANGING)

    def _death(self, noted: Record) -> Ended:
        """Why a process ended that noted nothing: what can be told from what it left."""
        detail = "its process was killed (SIGKILL, perhaps for want of memory)"
        if noted.boot != record.boot_id():
            detail = "the host restarted, or lost power, while it ran"
        else:
            try:
                text = files.read(self.directory, PROCESS).decode("utf-8", "replace")
            except OSError:
                text = ""
            mark = "Fatal Python error: "  # faulthandler's
            if mark in text:
                what = text.rpartition(mark)[2].partition("\n")[0]
                detail = f"its process crashed: {what} (see `kvmkit logs --process {self.name}`)"
            elif "\nTraceback (most recent call last):\n" in "\n" + text:
                what = text.rstrip().rpartition("\n")[2]
                detail = f"a mistake of kvmkit's: {what} (see `kvmkit logs --process {self.name}`)"
        return Ended(reason=DIED, status=1, detail=detail, at=time.time(), wanted=False)

    def rename(self, name: str) -> None:
        """Give it another name, also while it runs."""
        names.check(name)
        with self.changing():
            try:
                os.rename(self.path, root() / name)
            except OSError as error:
                raise _taken(name, error) from None
        events.note(self.name, "renamed", name)
        self.name = name

    def remove(self) -> None:
        """Remove it and all that is in it. Raises Busy while it runs, HostError when something stays."""
        with self.changing():
            if self.running():
                raise Busy(f"{self.name} is running: stop it first, or use `kvmkit rm -f {self.name}`")
            away = self.discard()
        if away.exists():
            raise HostError(f"not all of its files could be removed; what is left is in {away}")

    def abandon(self) -> None:
        """Remove it if it is still there, does not run, and has never run or was to go when it ends."""
        noted = self.load()
        if self._in_place() and not self.running() and (noted.state == "created" or noted.temporary):
            self.discard()

    def discard(self) -> Path:
        """Remove it, by its own process or whoever holds the lock. Where to, as what can't be removed stays there."""
        name = self.current_name()
        away = root() / f".gone.{os.getpid()}.{time.monotonic_ns():x}"
        try:
            os.rename(root() / name, away)
        except OSError as error:
            raise HostError(f"can't remove {root() / name}: {error.strerror}") from None
        files.remove_tree(away)
        events.note(name, "removed")
        return away


def root() -> Path:
    """Where the directories are."""
    path = data_dir() / "machines"
    try:
        path.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise HostError(f"can't make {path}: {error.strerror}") from None
    return path


def create(name: str, spec: bytes, noted: Record, *, keep: bool = True) -> Home:
    """Make a VM's directory. `name` empty: one that is free is found. `keep`: it is to survive a loss of power.

    BadInput: the name can't be one, or is taken.
    """
    base = root()
    if name:
        names.check(name)
        if (base / name).exists():
            raise _taken(name)
    _sweep(base)
    work = base / f".new.{os.getpid()}.{time.monotonic_ns():x}"
    noted.created = time.time()
    try:
        work.mkdir(mode=0o700)
        directory = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(f"can't make {work}: {error.strerror}") from None
    home = Home(name, directory, -1)
    try:
        home.lock = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=directory)
        files.replace(directory, SPEC, spec, sync=keep)
        home.store(noted)
        home.name = _place(work, base, name)
    except BaseException as error:
        home.close()
        files.remove_tree(work)
        if isinstance(error, OSError):
            raise HostError(f"can't make a VM in {base}: {error.strerror}") from None
        raise
    events.note(home.name, "created")
    return home


def _place(work: Path, base: Path, name: str) -> str:
    if name:
        try:
            os.rename(work, base / name)
        except OSError as error:
            raise _taken(name, error) from None
        return name
    for number in range(1, 100_000):
        name = f"vm{number}"
        if (base / name).exists():
            continue
        try:
            os.rename(work, base / name)
            return name
        except OSError:
            continue  # somebody was quicker
    raise HostError(f"no name is free in {base}")


def _taken(name: str, error: OSError | None = None) -> KvmkitError:
    from errno import EEXIST, ENOTEMPTY

    if error is not None and error.errno not in (EEXIST, ENOTEMPTY):
        return HostError(f"can't rename to {name}: {error.strerror}")
    return BadInput(f"there is a VM {name} already: choose another name, or `kvmkit rm {name}` first")


def _sweep(base: Path) -> None:
    """Remove what processes left that were ended: half-made and half-removed VMs, and, after a day, those without a
    name of their own that were to go when they ended."""
    for entry in list(os.scandir(base)):
        with suppress(FileNotFoundError):  # somebody else removes it at this moment
            _sweep_one(entry)


def _sweep_one(entry: os.DirEntry[str]) -> None:
    if entry.name[:2] == "vm" and entry.name[2:].isdigit() and entry.stat().st_mtime < time.time() - DEAD_SECONDS:
        _sweep_dead(entry.name)
    if entry.name.startswith((".new.", ".gone.")):
        pid = entry.name.split(".")[2]
        if pid.isdigit() and not os.path.exists(f"/proc/{pid}") and entry.stat().st_mtime < time.time() - 60:
            files.remove_tree(entry.path)


def _sweep_dead(name: str) -> None:
    home = _open(name)
    if home is None:
        return
    with home:
        noted = home.look()
        if noted.temporary and noted.state == "ended":
            try:
                home.remove()
            except KvmkitError:
                pass  # somebody else does


def open_home(name: str) -> Home:
    """The VM of that name. BadInput, with the nearest name, when there is none."""
    home = _open(name) if name and "/" not in name and not name.startswith(".") else None
    if home is None:
        raise names.unknown(name, listing())
    return home


def _open(name: str) -> Home | None:
    directory = -1
    try:
        directory = os.open(root() / name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return Home(name, directory, os.open(LOCK, os.O_RDWR | os.O_CLOEXEC, dir_fd=directory))
    except OSError as error:
        if directory >= 0:
            os.close(directory)
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            return None
        raise HostError(f"can't open {root() / name}: {error.strerror}") from None


def listing() -> list[str]:
    """The names of all VMs, sorted."""
    return sorted(entry.name for entry in os.scandir(root()) if not entry.name.startswith(".") and entry.is_dir())


def homes() -> Iterator[Home]:
    """Every VM in turn, open during its turn."""
    for name in listing():
        home = _open(name)
        if home is not None:
            with home:
                yield home
