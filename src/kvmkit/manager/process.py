"""The process of a VM in the background: `python -m kvmkit.manager.process NAME READY-FD`.

It tells on READY-FD, in one JSON line, whether the VM was started; its standard error is the VM's vmm.log.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvmkit.guest.client import AgentClient
    from kvmkit.guest.command import Command
    from kvmkit.manager.home import Home
    from kvmkit.manager.imagesettings import Settings
    from kvmkit.manager.outlet import Outlet
    from kvmkit.manager.pidfile import PidFile
    from kvmkit.manager.record import Ended
    from kvmkit.manager.spec import VmSpec
    from kvmkit.manager.vmm import Vmm

TERMINATED_SECONDS = 10.0
"""For the guest to power off when this process is sent SIGTERM, as at a host's shutdown."""


def main(argv: list[str]) -> int:
    name, ready = argv[1], int(argv[2])
    if os.fork():  # whoever started this need not wait for it, nor leave a zombie
        os._exit(0)
    began = time.monotonic_ns()
    import faulthandler

    from kvmkit.errors import KvmkitError
    from kvmkit.manager import files

    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)  # its threads, to the log, when it seems to hang
    os.chdir("/")
    for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(ignored, signal.SIG_IGN)
    try:
        vmm, run, held = _start(name, began)
    except (KvmkitError, OSError, MemoryError) as error:
        _tell(
            ready, {"error": files.text(str(error)) or type(error).__name__, "status": getattr(error, "exit_status", 1)}
        )
        return 1
    _tell(ready, {"ok": True})
    try:
        vmm.finish(run())
    finally:
        for taken in held:
            taken.close()
    return 0


def _tell(ready: int, answer: dict[str, object]) -> None:
    import msgspec

    try:
        os.write(ready, msgspec.json.encode(answer) + b"\n")
        os.close(ready)
    except OSError:
        pass  # whoever started this has gone


def _start(name: str, began: int):  # type: ignore[no-untyped-def]  # (Vmm, its run, what to close after it), for main alone
    from kvmkit.manager import home
    from kvmkit.manager.own_files import with_own_files
    from kvmkit.manager.vmm import Vmm

    own = home.open_home(name)
    held: list[PidFile | Outlet] = []
    begun: Vmm | None = None
    try:
        wanted = own.spec()
        if wanted.pidfile:
            from kvmkit.manager.pidfile import PidFile

            held.append(PidFile(wanted.pidfile))
        machine = wanted.machine(directory=own.path)
        machine = with_own_files(machine, wanted, own, temporary=own.load().temporary)
        vmm = begun = Vmm(own, machine, with_agent=wanted.with_agent, warn=_warn, started_ns=began)
        if wanted.serial:
            from kvmkit.manager import events, outlet

            led = outlet.attach(vmm, wanted.serial, lambda text: events.note(name, "serial port", text))
            held += [led] if led is not None else []
        signals = _signals()
        vmm.server.watch(signals, lambda events: _terminated(vmm, signals))
        job = _job(vmm, wanted, own) if wanted.with_agent else None
        vmm.start()
    except BaseException as error:
        if begun is not None:  # otherwise it has noted that itself
            begun.not_started(error)
        for taken in held:
            taken.close()
        own.close()  # the lock with it, before anybody is told
        raise

    def run() -> Ended:
        ended = vmm.serve()
        return job.judge(ended) if job is not None else ended

    return vmm, run, held


def _job(vmm: Vmm, wanted: VmSpec, own: Home) -> Job | None:
    """The command that is given, or what the image runs unasked; with the image's environment, user and directory."""
    from kvmkit.manager import imagesettings

    settings = imagesettings.of(wanted.image, own.path)
    if not wanted.command and not settings.command:
        return None
    return Job(vmm, list(wanted.command or settings.command), settings, waits=not wanted.command)


def _warn(text: str) -> None:
    sys.stderr.write(f"warning: {text}\n")


def _signals() -> int:
    """A descriptor that can be read when SIGTERM came."""
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    return reading


def _terminated(vmm: Vmm, signals: int) -> None:
    os.read(signals, 64)
    if vmm.stopping:
        vmm.kill("terminated (SIGTERM)")
        return
    vmm.stopping = "terminated (SIGTERM)"
    vmm.stop(TERMINATED_SECONDS)


class Job:
    """The VM's command: its output goes to the console's log, and the VM ends with it.

    `waits`: its input stays open, and nothing comes by it. So an image whose command is a shell or an interpreter goes
    on, instead of ending at once.
    """

    def __init__(self, vmm: Vmm, argv: list[str], settings: Settings, *, waits: bool) -> None:
        from kvmkit.manager.tasks import AGENT_SECONDS

        self._vmm = vmm
        self._argv = argv
        self._settings = settings
        self._input: int | None = None
        if waits:
            self._input, self._never = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._reading, self._writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._command: Command | None = None
        self._until = time.monotonic() + AGENT_SECONDS
        self._ended: Ended | None = None
        vmm.server.watch(self._reading, lambda events: self._take_output())
        vmm.server.after_each_turn(self._look)

    def _take_output(self) -> None:
        self._output()

    def _output(self) -> bool:
        try:
            data = os.read(self._reading, 1 << 16)
        except BlockingIOError:
            return False
        if data:
            self._vmm.tap(data)
        return bool(data)

    def _look(self, now: float) -> float | None:
        client: AgentClient = self._vmm.client
        if self._ended is not None:
            return None
        if self._command is None:
            if client.broken is not None:
                self._over("no agent", 1, str(client.broken))
            elif client.greeted:
                self._start()
                return now
            elif now >= self._until:
                self._over("no agent", 1, "the guest's agent does not answer")
            return self._until
        if self._command.error is not None:
            self._over("command lost", 1, str(self._command.error))
        elif self._command.done:
            assert self._command.status is not None
            self._over("command ended", self._command.status, "")
        return None

    def _start(self) -> None:
        from kvmkit.errors import BadInput

        settings = self._settings
        try:
            self._command = self._vmm.client.start(
                self._argv, env=settings.env, cwd=settings.cwd, user=settings.user,
                stdin=self._input, stdout=self._writing, stderr=self._writing,
            )  # fmt: skip
        except (BadInput, UnicodeError) as error:  # an image's settings are whoever's who made it
            self._over("command lost", 1, str(error))

    def _over(self, reason: str, status: int, detail: str) -> None:
        from kvmkit.manager.record import Ended

        while self._output():
            pass
        self._ended = Ended(reason=reason, status=status, detail=detail, wanted=reason == "command ended")
        self._vmm.machine.stop(reason)

    def judge(self, ended: Ended) -> Ended:
        """The command's end where it is the reason of the VM's."""
        if self._ended is not None:
            return self._ended
        while self._output():
            pass
        if ended.wanted and not self._vmm.stopping and ended.reason != "debug exit":
            ended.status, ended.wanted = 1, False
            ended.detail = f"before {self._argv[0]} ended"
        return ended


if __name__ == "__main__":
    sys.exit(main(sys.argv))
