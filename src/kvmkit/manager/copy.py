"""Copy files and directories into a guest and out of it: a small file by `cat`, a large one by the agent itself, which
takes two thirds of the time but more steps, a directory as a tar stream.

A file's bytes go between the VM's process and the file itself. What a guest sends as a tar stream is hostile: it is
unpacked into a new directory, by names that can't leave it, and its symbolic links are made last.
"""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO

from kvmkit.errors import BadInput, KvmkitError
from kvmkit.manager import control
from kvmkit.manager.execute import execute, said
from kvmkit.manager.home import Home

_INTO = 'if [ -d "$1" ]; then t=$1/$2; else t=$1; fi; '
_PUT_FILE = _INTO + 'cat > "$t.kvmkit-part" && chmod "$3" "$t.kvmkit-part" && mv "$t.kvmkit-part" "$t"'
_PUT_TREE = _INTO + 'mkdir -p "$t" && exec tar -x -f - -C "$t"'
_KIND = 'if [ -d "$1" ]; then exit 10; elif [ -f "$1" ]; then exit 11; elif [ -e "$1" ]; then exit 12; else exit 13; fi'
_SIZE = 'stat -L -c "%s %a" -- "$1"'
_DIRECTORY, _FILE, _OTHER = 10, 11, 12
LARGE = 4 << 20
"""Bytes from which on a file is copied by the agent."""
_PART = ".kvmkit-part"


def put(home: Home, source: Path, target: str) -> None:
    """Copy `source` to `target` in the guest: into it if that is a directory, else to that name."""
    if source.is_dir():
        _put_tree(home, source, target)
        return
    try:
        fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise BadInput(f"can't read {source}: {error.strerror}") from None
    try:
        found = os.fstat(fd)
        mode = f"{found.st_mode & 0o777:o}"
        if stat.S_ISREG(found.st_mode) and found.st_size >= LARGE:
            _put_large(home, fd, source.name, target, mode)
            return
        _done(
            execute(home, ["sh", "-c", _PUT_FILE, "cp", target, source.name, mode], stdin=fd), f"{home.name}:{target}"
        )
    finally:
        os.close(fd)


def _put_large(home: Home, fd: int, name: str, target: str, mode: str) -> None:
    where = f"{home.name}:{target}"
    status, told = said(home, ["sh", "-c", _INTO + 'printf %s "$t"', "cp", target, name])
    place = told.decode("utf-8", "surrogateescape")
    _done(status, where)
    _transfer(home, "write", place + _PART, fd, where)
    _done(execute(home, ["sh", "-c", 'chmod "$1" "$2" && mv "$2" "$3"', "cp", mode, place + _PART, place]), where)


def _transfer(home: Home, verb: str, path: str, fd: int, where: str) -> None:
    """Have the agent read or write a file of the guest's."""
    connection = control.request(home, verb, [fd], argv=[path])
    try:
        answer = connection.receive()
    finally:
        connection.close()
    if answer is None:
        raise KvmkitError(f"the VM's process ended while {where} was copied")
    if answer["exit"]:
        execute(home, ["rm", "-f", "--", path]) if verb == "write" else None
        raise KvmkitError(f"can't copy {where}: {os.strerror(int(answer['exit']))}")


def _put_tree(home: Home, source: Path, target: str) -> None:
    def write(pipe: IO[bytes]) -> None:
        with tarfile.open(mode="w|", fileobj=pipe, format=tarfile.GNU_FORMAT) as tar:
            for entry in sorted(os.listdir(source)):
                tar.add(source / entry, arcname=entry, filter=_nobody)

    reading, writing = os.pipe2(os.O_CLOEXEC)
    try:
        feeder = _Beside(write, os.fdopen(writing, "wb"))
        status = execute(home, ["sh", "-c", _PUT_TREE, "cp", target, source.resolve().name], stdin=reading)
    finally:
        os.close(reading)
    feeder.join(ignore_pipe=status != 0)
    _done(status, f"{home.name}:{target}")


def _nobody(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Owners are this host's; files in the guest are root's, as all there is."""
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member if member.isfile() or member.isdir() or member.issym() or member.islnk() else None


def get(home: Home, source: str, target: Path) -> list[str]:
    """Copy `source` of the guest to `target`: into it if that is a directory, else to that name.

    A directory is not copied over what is there. Returns a line for each thing that was left out.
    """
    kind = execute(home, ["sh", "-c", _KIND, "cp", source])
    name = os.path.basename(source.rstrip("/")) or "root"
    if kind not in (_DIRECTORY, _FILE):
        raise BadInput(
            f"{home.name}:{source}: {'is neither a file nor a directory' if kind == _OTHER else 'is not there'}"
        )
    if target.is_dir():
        target = target / name
    if not target.parent.is_dir():
        raise BadInput(f"there is no directory {target.parent}")
    work = target.with_name(f".{target.name}.kvmkit-{os.getpid()}")
    try:
        if kind == _FILE:
            _get_file(home, source, work)
            left: list[str] = []
        else:
            if target.exists():
                raise BadInput(f"{target} is there already: a directory is not copied over it")
            left = _get_tree(home, source, work)
        os.rename(work, target)
        return left
    except OSError as error:
        raise KvmkitError(f"can't write {target}: {error.strerror or error}") from None
    finally:
        if work.is_dir() and not work.is_symlink():
            shutil.rmtree(work, ignore_errors=True)
        else:
            work.unlink(missing_ok=True)


def _get_file(home: Home, source: str, work: Path) -> None:
    _, told = said(home, ["sh", "-c", _SIZE, "cp", source])
    size, _, mode = told.decode("utf-8", "surrogateescape").strip().partition(" ")
    with work.open("xb") as file:
        if size.isdigit() and len(size) < 20 and int(size) >= LARGE:
            _transfer(home, "read", source, file.fileno(), f"{home.name}:{source}")
        else:
            _done(execute(home, ["cat", "--", source], stdout=file.fileno()), f"{home.name}:{source}")
        file.flush()
    if mode.isdigit() and len(mode) <= 4:
        work.chmod(int(mode, 8) & 0o777 | 0o600)


def _get_tree(home: Home, source: str, work: Path) -> list[str]:
    left: list[str] = []
    reading, writing = os.pipe2(os.O_CLOEXEC)
    work.mkdir(mode=0o700)
    reader = _Beside(lambda pipe: left.extend(unpack(pipe, work)), os.fdopen(reading, "rb"))
    try:
        status = execute(home, ["tar", "-c", "-f", "-", "-C", source, "."], stdout=writing)
    finally:
        os.close(writing)
    reader.join()
    _done(status, f"{home.name}:{source}")
    work.chmod(0o755)
    return left


def unpack(stream: IO[bytes], root: Path) -> list[str]:
    """Unpack a tar stream into the empty directory `root`. Raises KvmkitError for a name that would leave it.

    Returns a line for each member that is no file, directory or link.
    """
    links: list[tuple[Path, str]] = []
    modes: list[tuple[Path, int]] = []
    left: list[str] = []
    try:
        with tarfile.open(mode="r|", fileobj=stream) as tar:
            for member in tar:
                path = _inside(root, member.name)
                if path == root:
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                if member.isdir():
                    path.mkdir(exist_ok=True)
                    modes.append((path, member.mode & 0o777 | 0o700))
                elif member.issym():
                    links.append((path, member.linkname))
                elif member.islnk():
                    os.link(_inside(root, member.linkname), path, follow_symlinks=False)
                elif member.isfile():
                    _unpack_file(tar, member, path)
                else:
                    left.append(f"{member.name}: neither a file, a directory nor a link: left out")
    except (tarfile.TarError, EOFError) as error:
        raise KvmkitError(f"what the guest's tar sent can't be read: {error}") from None
    for path, linkname in links:  # last, so that nothing was written through one
        os.symlink(linkname, path)
    for path, mode in reversed(modes):
        path.chmod(mode)
    return left


def _unpack_file(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    data = tar.extractfile(member)
    assert data is not None
    with path.open("xb") as file:
        shutil.copyfileobj(data, file, 1 << 18)
    path.chmod(member.mode & 0o777 | 0o600)
    os.utime(path, (member.mtime, member.mtime))


def _inside(root: Path, name: str) -> Path:
    parts: Iterable[str] = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\0" in name:
        raise KvmkitError(f"the guest's tar sent a name that leaves the directory: {name!r}")
    return root.joinpath(*parts)


class _Beside:
    """Do one end of a pipe on a thread of its own."""

    def __init__(self, work: Callable[[IO[bytes]], None], pipe: IO[bytes]) -> None:
        self._work = work
        self._pipe = pipe
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._work(self._pipe)
        except BaseException as error:
            self._error = error
        finally:
            try:
                self._pipe.close()  # the other side sees the end, whatever came of it
            except OSError as error:
                self._error = self._error or error

    def join(self, *, ignore_pipe: bool = False) -> None:
        self._thread.join()
        if self._error is not None and not (ignore_pipe and isinstance(self._error, BrokenPipeError)):
            raise self._error


def _done(status: int, what: str) -> None:
    if status:
        raise KvmkitError(f"can't copy {what}: the guest's command ended with {status}")
