"""The kinds of change a plan is made of. Each shows itself as it is then done, and says how it is undone."""

from __future__ import annotations

import difflib
import errno
import os
import shlex
from abc import ABC, abstractmethod
from dataclasses import dataclass

from kvmkit.errors import HostError
from kvmkit.host.journal import Record, pack, replace_file
from kvmkit.host.kernel import Modules, kernel_log, refusal
from kvmkit.host.system import Host


class Step(ABC):
    """`live` steps act on the running system and are left out for a tree of files."""

    live: bool = False
    recorded: bool = True

    @abstractmethod
    def show(self, host: Host) -> list[str]:
        """The lines printed before it is done: a command, or a diff."""

    @abstractmethod
    def record(self, host: Host) -> Record | None:
        """How to undo it, taken before it is done."""

    @abstractmethod
    def apply(self, host: Host) -> None:
        """Do it. HostError when it fails."""

    def settle(self, host: Host, record: Record) -> None:
        """Complete the record with what came of it."""
        return None


@dataclass
class Run(Step):
    """A command of this system; `undo` is the command that takes it back."""

    argv: list[str]
    undo: list[str] | None = None
    recorded: bool = True
    live: bool = True

    def show(self, host: Host) -> list[str]:
        return [f"# {shlex.join(self.argv)}"]

    def record(self, host: Host) -> Record | None:
        return {"kind": "command", "argv": self.undo} if self.undo else None

    def apply(self, host: Host) -> None:
        result = host.run(self.argv, timeout=120)
        if result.status == 0 and self.took_effect(host):
            return
        said = next((line for line in reversed(result.error.splitlines()) if line.strip()), "no reason given").strip()
        why = ""
        if self.argv[0] == "modprobe" and (reason := refusal(kernel_log(host))):
            why = f"; the kernel says: {reason[2]} ({reason[1]})"
        raise HostError(f"{shlex.join(self.argv)} failed: {said}{why}")

    def took_effect(self, host: Host) -> bool:
        """modprobe takes EEXIST for success, and that is what KVM answers when another vendor's module is loaded."""
        if self.argv[0] != "modprobe" or self.argv[1] == "-r":
            return True
        return Modules(host).running(self.argv[1])


@dataclass
class SetValue(Step):
    """A value under /proc or /sys."""

    path: str
    value: str
    recorded: bool = True
    live: bool = True

    def show(self, host: Host) -> list[str]:
        return [f"# echo {self.value} > {self.path}"]

    def record(self, host: Host) -> Record | None:
        return {"kind": "value", "path": self.path, "before": host.value(self.path) or "", "after": self.value}

    def apply(self, host: Host) -> None:
        try:
            host.path(self.path).write_text(f"{self.value}\n")
        except OSError as error:
            where = " (a container may not; do it on its host)" if host.container else ""
            raise HostError(f"{self.path}: the kernel refused {self.value}: {error.strerror}{where}") from error

    def settle(self, host: Host, record: Record) -> None:
        record["after"] = host.value(self.path) or ""


@dataclass
class MakeDirectory(Step):
    path: str
    mode: int = 0o755
    live: bool = False
    recorded: bool = True

    def show(self, host: Host) -> list[str]:
        return [f"# mkdir -m {self.mode:04o} {shlex.quote(self.path)}"]

    def record(self, host: Host) -> Record | None:
        return {"kind": "directory", "path": self.path}

    def apply(self, host: Host) -> None:
        path = host.path(self.path)
        try:
            path.mkdir()
            path.chmod(self.mode)
        except OSError as error:
            raise HostError(f"{self.path}: can't be made: {error.strerror}") from error


@dataclass
class RemoveDirectory(Step):
    """Only when empty: what somebody else put into it stays."""

    path: str
    live: bool = False
    recorded: bool = False

    def show(self, host: Host) -> list[str]:
        return [f"# rmdir {shlex.quote(self.path)}"]

    def record(self, host: Host) -> Record | None:
        return None

    def apply(self, host: Host) -> None:
        try:
            host.path(self.path).rmdir()
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY):
                raise HostError(f"{self.path}: can't be removed: {error.strerror}") from error


@dataclass
class WriteFile(Step):
    """The file's new content, whole; None removes it. A new file gets `mode` and `owner`; one that is there keeps its
    own, unless `mode` and `owner` are given as those to restore."""

    path: str
    content: bytes | None
    mode: int | None = None
    owner: tuple[int, int] | None = None
    recorded: bool = True

    def show(self, host: Host) -> list[str]:
        before = host.data(self.path)
        old = (before or b"").decode("utf-8", "backslashreplace").splitlines()
        new = (self.content or b"").decode("utf-8", "backslashreplace").splitlines()
        names = ("/dev/null" if before is None else self.path, "/dev/null" if self.content is None else self.path)
        return list(difflib.unified_diff(old, new, *names, lineterm="")) or [f"--- {names[0]}", f"+++ {names[1]}"]

    def record(self, host: Host) -> Record | None:
        found = host.stat(self.path)
        return {
            "kind": "file",
            "path": self.path,
            "before": pack(host.data(self.path)),
            "after": pack(self.content),
            "mode": None if found is None else found.st_mode & 0o7777,
            "owner": None if found is None else [found.st_uid, found.st_gid],
        }

    def apply(self, host: Host) -> None:
        path = host.path(self.path)
        if self.content is None:
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass
            except OSError as error:
                raise HostError(f"{self.path}: can't be removed: {error.strerror}") from error
            return
        found = host.stat(self.path)
        mode, owner = self.mode, self.owner
        if found is not None:
            mode = found.st_mode & 0o7777 if mode is None else mode
            owner = (found.st_uid, found.st_gid) if owner is None else owner
        replace_file(path, self.content, 0o644 if mode is None else mode, owner)
