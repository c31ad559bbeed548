"""One host's files and programs: this system, or a tree of files recorded from another or prepared as an image."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from kvmkit import packages

MOST_LINKS = 40  # as the kernel's own limit: a tree whose links form a circle ends here
PROGRAM_DIRECTORIES = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")


@dataclass(frozen=True)
class Result:
    """What a program said. `status` is its exit status; 127 when there is no such program, 124 when it hung."""

    status: int
    output: str
    error: str


class Host:
    """Read-only view of a host. Every method takes absolute paths as the host itself would name them and is tolerant:
    what is missing or may not be read gives None, an empty list or False, never an exception."""

    def __init__(self, root: str | Path = "/") -> None:
        self.root = Path(root).resolve()
        self.live = str(self.root) == "/"

    def path(self, name: str) -> Path:
        """Where `name` is for this process. Links inside a tree are followed inside it, so that a link to an absolute
        path can't lead a read or a write out of the tree."""
        if self.live:
            return Path(name)
        waiting = [part for part in reversed(name.split("/")) if part not in ("", ".")]
        here = self.root
        links = 0
        while waiting:
            part = waiting.pop()
            if part == "..":
                if here != self.root:
                    here = here.parent
                continue
            step = here / part
            try:
                target = os.readlink(step)
            except OSError:
                here = step
                continue
            links += 1
            if links > MOST_LINKS:
                return self.root / "links-without-end"
            if target.startswith("/"):
                here = self.root
            waiting.extend(p for p in reversed(target.split("/")) if p not in ("", "."))
        return here

    def data(self, name: str) -> bytes | None:
        try:
            return self.path(name).read_bytes()
        except OSError:
            return None

    def text(self, name: str) -> str | None:
        found = self.data(name)
        return None if found is None else found.decode("utf-8", "replace")

    def value(self, name: str) -> str | None:
        """The one line of a file under /proc or /sys."""
        found = self.text(name)
        return None if found is None else found.strip()

    def number(self, name: str) -> int | None:
        try:
            return int(self.value(name) or "")
        except ValueError:
            return None

    def exists(self, name: str) -> bool:
        try:
            return os.path.lexists(self.path(name))
        except OSError:
            return False

    def names(self, directory: str) -> list[str]:
        try:
            return sorted(os.listdir(self.path(directory)))
        except OSError:
            return []

    def stat(self, name: str) -> os.stat_result | None:
        try:
            return self.path(name).stat()
        except OSError:
            return None

    def link(self, name: str) -> str | None:
        """The target of a link, unresolved."""
        try:
            if self.live:
                return os.readlink(name)
            directory, _, last = name.rpartition("/")
            return os.readlink(self.path(directory or "/") / last)
        except OSError:
            return None

    def program(self, *names: str) -> str | None:
        """The path of the first of `names` that is installed (a name with a slash is tried as it is)."""
        for name in names:
            if "/" in name:
                if self.exists(name):
                    return name
                continue
            if self.live and (found := shutil.which(name)):
                return found
            for directory in PROGRAM_DIRECTORIES:
                if self.exists(f"{directory}/{name}"):
                    return f"{directory}/{name}"
        return None

    def run(self, argv: list[str], timeout: float = 20.0) -> Result:
        """Run a program of this system; a tree runs nothing. `timeout` in seconds."""
        if not self.live:
            return Result(127, "", f"{argv[0]}: not run for a tree of files")
        program = self.program(argv[0])
        if program is None:
            return Result(127, "", f"{argv[0]}: not installed")
        try:
            done = subprocess.run(
                [program, *argv[1:]],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout,
                env={**os.environ, "LC_ALL": "C.UTF-8"},
            )
        except subprocess.TimeoutExpired:
            return Result(124, "", f"{argv[0]}: no answer within {timeout:g} s")
        except OSError as error:
            return Result(127, "", f"{argv[0]}: {error.strerror}")
        return Result(done.returncode, done.stdout, done.stderr)

    @cached_property
    def release(self) -> str:
        """The running kernel's release; in a tree without /proc, the one whose modules stand in it, or ''."""
        if found := self.value("/proc/sys/kernel/osrelease"):
            return found
        if self.live:
            return platform.release()
        installed = self.names("/lib/modules") or self.names("/usr/lib/modules")
        return installed[-1] if installed else ""

    @cached_property
    def arch(self) -> str:
        """As uname -m says it: x86_64, aarch64, ... or '' when a tree does not tell."""
        if self.live:
            return platform.machine()
        if found := self.value("/proc/sys/kernel/arch"):
            return found
        cpuinfo = self.text("/proc/cpuinfo") or ""
        if "vendor_id" in cpuinfo:
            return "x86_64"
        if "CPU implementer" in cpuinfo:
            return "armv7l" if "0xc0f" in cpuinfo else "aarch64"
        return ""

    @cached_property
    def is_x86(self) -> bool:
        return self.arch in ("x86_64", "i686", "i586", "")

    @cached_property
    def distribution(self) -> str:
        """The family whose package manager there is: debian, arch, fedora, suse, alpine, or ''."""
        return packages.family(packages.release(self._os_release))

    @cached_property
    def _os_release(self) -> str:
        return self.text("/etc/os-release") or self.text("/usr/lib/os-release") or ""

    def install(self, thing: str) -> str:
        """The command that installs it here, or '' where the distribution is not known."""
        return packages.command(thing, self._os_release)

    @cached_property
    def container(self) -> str:
        """The kind of container this is ('docker', 'podman', 'lxc', ...), or ''."""
        if found := self.value("/run/systemd/container"):
            return found
        if self.exists("/run/.containerenv"):
            return "podman"
        if self.exists("/.dockerenv"):
            return "docker"
        for entry in (self.data("/proc/1/environ") or b"").split(b"\0"):
            if entry.startswith(b"container="):
                return entry[10:].decode("utf-8", "replace") or "container"
        cgroup = self.text("/proc/1/cgroup") or ""
        for mark, kind in (("/docker", "docker"), ("/kubepods", "kubernetes"), ("/lxc", "lxc"), ("libpod", "podman")):
            if mark in cgroup:
                return kind
        return ""

    @cached_property
    def is_root(self) -> bool:
        """Whether this process may change the host: root, or anyone who may write in the tree."""
        return os.geteuid() == 0 or (not self.live and os.access(self.root, os.W_OK))

    def process_ids(self) -> list[int]:
        return sorted(int(name) for name in self.names("/proc") if name.isdigit())
