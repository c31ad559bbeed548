"""One machine in the foreground: its guest's command or its console on this terminal, until one of them ends."""

from __future__ import annotations

import os
import select
import sys
import threading
from typing import TYPE_CHECKING

from kvmkit import terminal
from kvmkit.cli import stats_file
from kvmkit.cli.main import say
from kvmkit.errors import GuestFault, KvmkitError

if TYPE_CHECKING:
    from kvmkit.machine import End, Machine, MachineSpec

DEMONSTRATION = ["sh", "-c", '. /etc/os-release; echo "$PRETTY_NAME in a VM of kvmkit"; uname -srm; uptime']
SHELL = ["/bin/sh", "-l"]
TIMED_OUT = 124
INTERRUPTED = 130
HELLO_SECONDS = 300.0
"""A guest whose agent has not answered by then hangs: the slowest boot seen took a tenth of it."""
LAST_LINES = 20
DRIVER_SECONDS = 10.0
"""After its agent's first word, a guest loads its drivers in a tenth of that."""


def run(
    spec: MachineSpec,
    *,
    command: list[str] | None,
    with_agent: bool,
    tty: bool = False,
    stats: str | None = None,
    started_ns: int | None = None,
) -> int:
    """Run the machine to its end; returns kvmkit's exit status. GuestFault: its end is not one anybody wanted."""
    from kvmkit.machine import Machine

    attended = os.isatty(0) and os.isatty(1)
    # On a terminal the keys come by way of us, who look for the escape key.
    keys, typed = os.pipe() if attended and not with_agent else (0, -1)
    machine = Machine(spec, console_in=keys, warn=_warn, started_ns=started_ns)
    undriven = _Undriven(machine)
    try:
        if with_agent:
            return _by_agent(machine, command, tty, attended, undriven)
        return _by_console(machine, typed)
    finally:
        machine.close()
        undriven.tell()
        for fd in (keys, typed):
            if fd > 2:
                os.close(fd)
        stats_file.write(stats, machine.stats.json())


def _warn(text: str) -> None:
    say(f"warning: {text}")


class _Undriven:
    """Tells of devices that no driver of the guest's took into use: some time after it is up, or at the end."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._timer: threading.Timer | None = None
        self._told = False

    def guest_is_up(self) -> None:
        if self._machine.undriven():
            self._timer = threading.Timer(DRIVER_SECONDS, self._say)
            self._timer.daemon = True
            self._timer.start()

    def tell(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer.join()
        self._say()

    def _say(self) -> None:
        if not self._told and (lines := self._machine.undriven()):
            self._told = True
            for line in lines:
                _warn(line)


def _by_agent(machine: Machine, command: list[str] | None, tty: bool, attended: bool, undriven: _Undriven) -> int:
    """The command's streams are ours, and so is its status."""
    from kvmkit.guest.client import AgentClient, AgentGone, Escaped, Woken

    shell = command is None and attended
    argv = command or (SHELL if shell else DEMONSTRATION)
    client = AgentClient(machine.agent_fd, wake=machine.ended_fd)
    machine.start()
    try:
        client.wait_hello(HELLO_SECONDS)
        machine.stats.mark("user_space")
        undriven.guest_is_up()
        if shell:
            say(f"exit or Ctrl-D ends the shell and its VM; {terminal.EscapeKey.NAME} leaves at any time")
        stdin = 0 if shell or command is not None else None
        status = client.run(argv, tty=tty or shell, stdin=stdin, escape=terminal.EscapeKey())
        machine.stats.mark("command_end")
        return status
    except Escaped:
        return 0 if shell else INTERRUPTED
    except (Woken, AgentGone) as gone:
        end = machine.wait(timeout=5)
        if end is None:
            raise GuestFault(f"{gone}; `kvmkit run --console` shows all it says", _last_words(machine)) from None
        return _status(machine, end, waited_for=None if shell else argv[0])


def _by_console(machine: Machine, typed: int) -> int:
    """The serial port on this terminal, until the machine ends or the user leaves."""
    if typed < 0:
        machine.start()
        end = machine.wait()
    else:
        say(f"the guest's serial port; {terminal.EscapeKey.NAME} leaves")
        with terminal.raw(0):
            machine.start()
            _pass_keys(machine, typed)
            end = machine.wait()
    assert end is not None
    sys.stdout.flush()
    return _status(machine, end, waited_for=None)


def _pass_keys(machine: Machine, typed: int) -> None:
    """Carry the keys to the guest until the machine ends; the escape key ends it."""
    escape = terminal.EscapeKey()
    os.set_blocking(typed, False)
    poll = select.poll()
    poll.register(machine.ended_fd, select.POLLIN)
    poll.register(0, select.POLLIN)
    while True:
        ready = dict(poll.poll())
        if machine.ended_fd in ready:
            return
        data = _read_keys()
        if not data:  # the terminal hung up
            poll.unregister(0)
            continue
        data = escape.feed(data)
        if escape.pressed:
            machine.stop("left by the escape key")
            return
        try:
            os.write(typed, data)
        except BlockingIOError:
            pass  # the guest takes nothing: what is typed is lost, as on a real line


def _read_keys() -> bytes:
    try:
        return os.read(0, 1024)
    except OSError:
        return b""


def _status(machine: Machine, end: End, waited_for: str | None) -> int:
    """Our exit status for the machine's end. `waited_for`: the command that can't have ended before it."""
    from kvmkit.machine import EndReason

    if end.reason is EndReason.DEBUG_EXIT:
        return end.status & 0xFF
    if end.reason is EndReason.TIMEOUT:
        say(f"--timeout: {end.detail}")
        return TIMED_OUT
    panic = _panic(machine)
    if panic:
        raise GuestFault(f"the guest's kernel panicked: {panic}", _last_words(machine))
    if not end.wanted:
        report = "\n".join([_last_words(machine), end.report]).strip()
        raise GuestFault(f"the guest can't go on: {end.detail}", report)
    if end.reason is EndReason.RESET:
        raise GuestFault("the guest restarted, which ends `kvmkit run`")
    if waited_for is not None:
        raise KvmkitError(f"the guest powered off before {waited_for} ended")
    return 0


def _panic(machine: Machine) -> str:
    """What a Linux guest said it panicked of; empty when it did not say so in its last lines."""
    mark = "Kernel panic - not syncing: "
    lines = machine.console.text(100).split("\n")
    return next((line.partition(mark)[2].strip() for line in reversed(lines) if mark in line), "")


def _last_words(machine: Machine) -> str:
    """The end of the console, unless it was on the terminal anyway."""
    text = "" if machine.spec.console == "attach" else machine.console.text(LAST_LINES)
    shown = "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text)
    return f"the end of the guest's console:\n{shown}" if text.strip() else ""
