"""VMs from Python: make one, start it, run commands in it, throw it away.

from kvmkit import VM

with VM.create(memory="1G") as vm:                 # started; killed and removed at the end of the block
    done = vm.exec(["uname", "-r"])
    print(done.status, done.stdout.decode())

vm = VM.create("web")                              # kept: its name is for `kvmkit ps` and later programs too
vm.start()
vm.stop()
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from msgspec import to_builtins

from kvmkit.machine.spec import ScsiDisk
from kvmkit.manager import control, create, execute, home, listing, logs, spawn
from kvmkit.manager.listing import Row
from kvmkit.manager.record import Ended
from kvmkit.manager.spec import VmSpec

STOP_SECONDS = 30.0


class Completed(NamedTuple):
    """A command that has ended: its status as a shell has it, and all it wrote."""

    status: int
    stdout: bytes
    stderr: bytes


class VM:
    """A VM of this user, by name. It is a process of its own; this object only knows its directory.

    Methods may be called by any thread. They raise `kvmkit.errors.BadInput` for what can't be,
    `kvmkit.errors.HostError` for what the host lacks, and `kvmkit.errors.KvmkitError` for the rest; `str` of one is a
    line for people.
    """

    def __init__(self, name: str) -> None:
        """The VM of that name. BadInput when there is none."""
        self._home = home.open_home(name)
        self._removed_at_end = False

    @classmethod
    def create(cls, name: str = "", **spec: Any) -> VM:
        """Make a VM, not started. `spec`: the fields of `VmSpec`, such as memory="1G", image=, kernel=, accel=.

        Without a name it gets one that is free, and is removed at the end of a `with` block.
        """
        wanted = VmSpec(name=name, **spec).absolute().resolved()
        vm = cls.__new__(cls)
        vm._home = create.make(wanted)
        vm._removed_at_end = not name
        return vm

    @staticmethod
    def list() -> Iterator[VM]:
        """All VMs of this user."""
        for name in home.listing():
            yield VM(name)

    @property
    def name(self) -> str:
        return self._home.current_name()

    @property
    def directory(self) -> Path:
        return home.root() / self.name

    @property
    def spec(self) -> VmSpec:
        """What it is to be, as it was created."""
        return self._home.spec()

    @property
    def state(self) -> str:
        """created, starting, running, paused, stopping, stopped, failed or died."""
        return self.info().state

    def info(self) -> Row:
        """What `kvmkit ps` shows of it. Sizes in bytes, times in seconds."""
        return listing.row(self._home)

    def start(self, *, wait: bool = True) -> VM:
        """Start it in the background. `wait`: until its guest can run commands, if it has kvmkit's agent."""
        wanted = self.spec
        wanted.machine(directory=self.directory)  # an image that is not there is built now
        spawn.spawn(self._home)
        if wait and wanted.with_agent:
            control.ask(self._home, "ready", timeout=600.0)
        return self

    def exec(
        self,
        argv: Sequence[str],
        *,
        input: bytes = b"",
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        user: str = "",
        timeout: float | None = None,
    ) -> Completed:
        """Run a command in the guest to its end. Any number may run at once, each on a thread of its own.

        Raises KvmkitError, with `exit_status` 124, when `timeout` seconds are over.
        """
        with _Pipe(input) as stdin, _Pipe() as out, _Pipe() as err:
            status = execute.execute(
                self._home, argv, stdin=stdin.theirs if input else None, stdout=out.theirs, stderr=err.theirs,
                env=env, cwd=cwd, user=user, timeout=timeout,
            )  # fmt: skip
            return Completed(status, out.end(), err.end())

    def copy_in(self, source: str | os.PathLike[str], target: str) -> None:
        """Copy a file or directory of the host into the guest."""
        from kvmkit.manager import copy

        copy.put(self._home, Path(source), target)

    def copy_out(self, source: str, target: str | os.PathLike[str]) -> None:
        """Copy a file or directory of the guest to the host."""
        from kvmkit.manager import copy

        copy.get(self._home, source, Path(target))

    def pause(self) -> None:
        control.ask(self._home, "pause")

    def resume(self) -> None:
        control.ask(self._home, "resume")

    def set(self, **changes: str) -> tuple[str, ...]:
        """Change it while it runs, as `kvmkit set` does: disk="0,iops=500" or disk="0,size=2G", rng="bps=64K",
        scsi="1,disc=other.iso". What each is now, in words. Gone when it is started again."""
        answer = control.ask(self._home, "set", changes=list(changes.items()))
        return tuple(str(line) for line in answer["now"])

    def type_text(self, text: str) -> bool:
        """Type on its keyboard (`input=["keyboard"]`), as on a US one. False: the guest takes no keys now."""
        from kvmkit.virtio.input import typed

        return self._input("keyboard", typed(text))

    def press(self, *keys: str) -> bool:
        """Press keys together, such as press("ctrl", "alt", "delete"). False: the guest takes no keys now."""
        from kvmkit.virtio.input import press

        return self._input("keyboard", press(*keys))

    def point(self, x: float, y: float, click: str = "") -> bool:
        """Put its tablet's pointer to a place, from 0 (left, top) to 1, and perhaps click "left", "right" or "middle".

        False: the guest takes no events now.
        """
        from kvmkit.virtio.input import button, move

        events = move(x, y)
        return self._input("tablet", [*events, *button(click, True), *button(click, False)] if click else events)

    def _input(self, device: str, events: Sequence[tuple[int, int, int]]) -> bool:
        return bool(control.ask(self._home, "input", device=device, events=[*events])["taken"])

    def attach_scsi(
        self, path: str | os.PathLike[str], *, readonly: bool = False, cdrom: bool = False, serial: str = ""
    ) -> int:
        """Add a SCSI disk or CD-ROM while it runs; its target. It needs an adapter: a `scsi` device at its start."""
        unit = ScsiDisk(path=os.path.abspath(path), readonly=readonly, cdrom=cdrom, serial=serial)
        return int(control.ask(self._home, "attach", unit=to_builtins(unit))["target"])

    def detach_scsi(self, target: int) -> None:
        """Take a SCSI device away while it runs, as pulling its cable does."""
        control.ask(self._home, "detach", target=target)

    def stats(self) -> dict[str, Any]:
        """What its process says of itself: CPU seconds, memory, exits by reason."""
        return control.ask(self._home, "stats")

    def log(self) -> bytes:
        """What its console said: the last 1 to 2 MiB."""
        return b"".join(logs.read(self._home, home.CONSOLE))

    def stop(self, timeout: float = STOP_SECONDS) -> Ended:
        """Have the guest power off, and end it after `timeout` seconds. Nothing happens when it does not run."""
        return control.until_end(self._home, "stop", timeout=timeout, deadline=timeout + 15)

    def kill(self) -> Ended:
        """Pull the plug."""
        return control.destroy(self._home)

    def wait(self, timeout: float | None = None) -> Ended:
        """Wait for its end, and tell how it was. KvmkitError when `timeout` seconds are over."""
        return control.until_end(self._home, "wait", deadline=timeout)

    def rename(self, name: str) -> None:
        self._home.name = self.name
        control.rename(self._home, name)

    def remove(self, *, force: bool = False) -> None:
        """Remove it and all that is its own. `force`: kill it first if it runs."""
        if force:
            self.kill()
        self._home.name = self.name
        self._home.remove()

    def close(self) -> None:
        """Let go of it. It goes on."""
        self._home.close()

    def __enter__(self) -> VM:
        if not self._home.running():
            try:
                self.start()
            except BaseException:
                if self._removed_at_end:
                    self.remove(force=True)
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._removed_at_end:
                self.remove(force=True)
            else:
                self.stop()
        finally:
            self.close()

    def __repr__(self) -> str:
        return f"<VM {self.name}>"


class _Pipe:
    """A pipe to a command (given what to write) or from it, served by a thread while the command runs."""

    def __init__(self, data: bytes | None = None) -> None:
        reading, writing = os.pipe2(os.O_CLOEXEC)
        self._data = data
        self._came: list[bytes] = []
        self.theirs, self._ours = (writing, reading) if data is None else (reading, writing)
        self._thread = threading.Thread(target=self._read if data is None else self._write, daemon=True)

    def __enter__(self) -> _Pipe:
        self._thread.start()
        return self

    def _read(self) -> None:
        while data := os.read(self._ours, 1 << 16):
            self._came.append(data)

    def _write(self) -> None:
        view = memoryview(self._data or b"")
        try:
            while view:
                view = view[os.write(self._ours, view) :]
        except BrokenPipeError:
            pass  # the command did not want it all
        finally:
            os.close(self._ours)
            self._ours = -1

    def end(self) -> bytes:
        """All that came; the command has ended."""
        self._close_theirs()
        self._thread.join()
        return b"".join(self._came)

    def _close_theirs(self) -> None:
        if self.theirs >= 0:
            os.close(self.theirs)
        self.theirs = -1

    def __exit__(self, *_: object) -> None:
        self._close_theirs()
        self._thread.join()
        if self._ours >= 0:
            os.close(self._ours)
