"""One VM in the foreground: its guest's command or its console on this terminal, until one of them ends."""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import TYPE_CHECKING

from kvmkit import terminal
from kvmkit.cli import stats_file
from kvmkit.cli.main import say
from kvmkit.cli.named import SHELL
from kvmkit.errors import GuestFault, KvmkitError
from kvmkit.manager import outcome
from kvmkit.manager.imagesettings import NONE, Settings
from kvmkit.manager.record import Ended

if TYPE_CHECKING:
    from kvmkit.machine import End, Machine, MachineSpec
    from kvmkit.manager.home import Home
    from kvmkit.manager.vmm import Vmm

DEMONSTRATION = ["sh", "-c", '. /etc/os-release; echo "$PRETTY_NAME in a VM of kvmkit"; uname -srm; uptime']
TIMED_OUT = outcome.TIMED_OUT
INTERRUPTED = 130
SIGNALLED = (129, INTERRUPTED, 131, 143)
"""Statuses of an end by SIGHUP, SIGINT, SIGQUIT and SIGTERM."""
HELLO_SECONDS = 300.0
"""A guest whose agent has not answered by then hangs: the slowest boot seen took a tenth of it."""
DRIVER_SECONDS = 10.0
"""After its agent's first word, a guest loads its drivers in a tenth of that."""


def run(
    home: Home,
    spec: MachineSpec,
    *,
    command: list[str] | None,
    with_agent: bool,
    tty: bool = False,
    stats: str | None = None,
    started_ns: int | None = None,
    serial: str = "",
    settings: Settings = NONE,
) -> int:
    """Run the VM of `home` to its end; returns kvmkit's exit status. GuestFault: its end is not one anybody wanted."""
    from kvmkit.manager.vmm import Vmm

    attended = os.isatty(0) and os.isatty(1)
    # On a terminal the keys come by way of us, who look for the escape key.
    keys = 0 if spec.console == "attach" and not attended else -1
    vmm = Vmm(
        home, spec, with_agent=with_agent, foreground=True, console_in=keys, warn=_warn, started_ns=started_ns
    )  # fmt: skip
    led = None
    if serial:
        from kvmkit.manager import outlet

        attended = False
        try:
            led = outlet.attach(vmm, serial, say)
        except BaseException as error:
            vmm.finish(Ended(reason="not started", status=1, detail=str(error)))
            raise
    undriven = _Undriven(vmm.machine)
    status = INTERRUPTED
    try:
        with terminal.waking() as signals:
            vmm.server.watch(signals, lambda events: terminal.drain(signals))
            try:
                if with_agent:
                    status = _by_agent(vmm, command, tty, attended, undriven, settings)
                else:
                    status = _by_console(vmm, attended)
            finally:
                vmm.server.forget(signals)
        return status
    except KvmkitError as error:
        status = error.exit_status
        raise
    except SystemExit as exit_:
        status = exit_.code if isinstance(exit_.code, int) else 1
        raise
    finally:
        vmm.finish(_ended(vmm, status))
        if led is not None:
            led.close()
        undriven.tell(cut_short=bool(vmm.stopping) or status in (*SIGNALLED, TIMED_OUT))
        stats_file.write(stats, vmm.machine.stats.json())


def _warn(text: str) -> None:
    say(f"warning: {text}")


def _ended(vmm: Vmm, status: int) -> Ended:
    """What is noted of a VM that ends with this process's work."""
    end = vmm.machine.wait(0)
    if end is None:
        reason = vmm.stopping or ("interrupted" if status in SIGNALLED else "command ended")
        return Ended(reason=reason, status=status, at=time.time())
    ended = outcome.judge(vmm.machine, end)
    if vmm.stopping:
        ended.reason, ended.wanted = vmm.stopping, True
    ended.status = status
    return ended


class _Undriven:
    """Tells of devices that no driver of the guest's took into use: some time after it is up, or at the end."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._timer: threading.Timer | None = None
        self._told = False
        self._began = time.monotonic()

    def guest_is_up(self) -> None:
        if self._machine.undriven():
            self._timer = threading.Timer(DRIVER_SECONDS, self._say)
            self._timer.daemon = True
            self._timer.start()

    def tell(self, *, cut_short: bool) -> None:
        """At the end. `cut_short`: it is one that we made, perhaps before the guest could load a driver."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer.join()
        if not cut_short or time.monotonic() - self._began > DRIVER_SECONDS:
            self._say()

    def _say(self) -> None:
        if not self._told and (lines := self._machine.undriven()):
            self._told = True
            for line in lines:
                _warn(line)


def _by_agent(
    vmm: Vmm, command: list[str] | None, tty: bool, attended: bool, undriven: _Undriven, settings: Settings
) -> int:
    """The command's streams are ours, and so is its status."""
    from kvmkit.guest.client import AgentGone, Escaped, Woken

    if command is None and settings.command:
        command, tty = list(settings.command), attended
    shell = command is None and attended
    argv = command or (SHELL if shell else DEMONSTRATION)
    client, machine = vmm.client, vmm.machine
    vmm.start()
    try:
        client.wait_hello(HELLO_SECONDS)
        machine.stats.mark("user_space")
        undriven.guest_is_up()
        if shell:
            say(f"exit or Ctrl-D ends the shell and its VM; {terminal.EscapeKey.NAME} leaves at any time")
        stdin = 0 if shell or command is not None else None
        status = client.run(
            argv, tty=tty or shell, stdin=stdin, escape=terminal.EscapeKey(),
            env=settings.env, cwd=settings.cwd or None, user=settings.user,
        )  # fmt: skip
        machine.stats.mark("command_end")
        return status
    except Escaped:
        return 0 if shell else INTERRUPTED
    except (Woken, AgentGone) as gone:
        end = machine.wait(timeout=5)
        if end is None:
            last = outcome.last_words(machine)
            raise GuestFault(f"{gone}; `kvmkit run --console` shows all it says", last) from None
        return _status(vmm, end, waited_for=None if shell else argv[0])


def _by_console(vmm: Vmm, attended: bool) -> int:
    """The serial port on this terminal, until the machine ends or the user leaves."""
    if not attended:
        vmm.start()
        vmm.serve()
    else:
        say(f"the guest's serial port; {terminal.EscapeKey.NAME} leaves")
        with terminal.raw(0):
            escape = terminal.EscapeKey()
            vmm.server.watch(0, lambda events: _pass_keys(vmm, escape))
            vmm.start()
            vmm.serve()
    end = vmm.machine.wait()
    assert end is not None
    sys.stdout.flush()
    return _status(vmm, end, waited_for=None)


def _pass_keys(vmm: Vmm, escape: terminal.EscapeKey) -> None:
    """Carry keys to the guest; the escape key ends the machine."""
    try:
        data = os.read(0, 1024)
    except OSError:
        data = b""
    if not data:  # the terminal hung up
        vmm.server.forget(0)
        return
    data = escape.feed(data)
    if escape.pressed:
        vmm.server.forget(0)
        vmm.stopping = "left by the escape key"
        vmm.machine.stop("left by the escape key")
        return
    vmm.type(data)


def _status(vmm: Vmm, end: End, waited_for: str | None) -> int:
    """Our exit status for the machine's end. `waited_for`: the command that can't have ended before it."""
    from kvmkit.machine import EndReason

    machine = vmm.machine
    if end.reason is EndReason.DEBUG_EXIT:
        return end.status & 0xFF
    if end.reason is EndReason.TIMEOUT:
        say(f"--timeout: {end.detail}")
        return TIMED_OUT
    if vmm.stopping in ("stopped", "killed"):
        raise KvmkitError(f"the VM was {vmm.stopping} by `kvmkit {vmm.stopping[:4]}`")
    panic = outcome.panic(machine)
    if panic:
        raise GuestFault(f"the guest's kernel panicked: {panic}", outcome.last_words(machine))
    if not end.wanted:
        report = "\n".join([outcome.last_words(machine), end.report]).strip()
        raise GuestFault(f"the guest can't go on: {end.detail}", report)
    if end.reason is EndReason.RESET:
        raise GuestFault("the guest restarted, which ends `kvmkit run`")
    if waited_for is not None:
        raise KvmkitError(f"the guest powered off before {waited_for} ended")
    return 0
