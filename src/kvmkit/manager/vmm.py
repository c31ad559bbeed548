"""A VM's process: the machine, its agent, its console, its record and its control socket, served by one loop.

    vmm = Vmm(home, spec, machine_spec)     # claims the directory, loads the kernel, listens
    vmm.start()
    vmm.finish(vmm.serve())                 # in the foreground, cli.session runs a command in between

Everything here is one thread's, but for the console, which the machine's threads write.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kvmkit.errors import BadInput, KvmkitError
from kvmkit.guest.client import AgentClient, AgentGone, Woken
from kvmkit.guest.protocol import ProtocolError
from kvmkit.machine import Machine, State
from kvmkit.manager import events, files, networking, outcome, record, sockets, wire
from kvmkit.manager.console import ConsoleTap, RotatingLog
from kvmkit.manager.home import CONSOLE, SOCKET, Home
from kvmkit.manager.messages import Request
from kvmkit.manager.record import Ended
from kvmkit.manager.room import Room
from kvmkit.manager.server import Peer, Server, Task

if TYPE_CHECKING:
    from kvmkit.guest.command import Command
    from kvmkit.machine import MachineSpec

STOP_SECONDS = 30.0
"""How long a guest may take to power off when it is asked to."""
DRIVER_SECONDS = 10.0
"""After its agent's first word, a guest loads its drivers in a tenth of that."""
BALLOON_SECONDS = 1.0
"""How often what the balloon holds is noted while that changes."""
GRACE_SECONDS = 1.0
"""Between SIGHUP and SIGKILL for a command whose client has gone."""


class Vmm:
    """`home` becomes this process's: Busy when the VM runs already. Raises what `Machine` raises, and HostError.

    `console_in`: where the console's input comes from; -1: from those who attach.
    """

    def __init__(
        self,
        home: Home,
        spec: MachineSpec,
        *,
        with_agent: bool = True,
        foreground: bool = False,
        console_in: int = -1,
        warn: Callable[[str], None] | None = None,
        started_ns: int | None = None,
    ) -> None:
        home.claim()
        self.home = home
        self.with_agent = with_agent
        self.noted = home.load()
        self._own_keys = console_in < 0
        self._keys, self._keyboard = os.pipe2(os.O_CLOEXEC) if self._own_keys else (console_in, -1)
        self._stop_at: float | None = None
        self._warn = warn
        self._orphans: list[tuple[Command, float]] = []
        self._boots, self._resets = 1, 0
        self._drivers_at: float | None = None
        self._drivers_told = False
        self._balloon_at = 0.0
        self.stopping = ""
        """Why it is to end, when somebody here wants it."""
        self.finished = False
        try:
            record.begin(self.noted)
            self.noted.foreground = foreground
            self.noted.memory, self.noted.cpus = spec.memory, spec.cpus
            self.noted.addresses = networking.addresses(spec.networks)
            home.store(self.noted)
            if not self.noted.temporary:
                record.set_aside(home.directory)
            if self._own_keys:
                os.set_blocking(self._keyboard, False)
            self.tap = ConsoleTap(RotatingLog(home.directory, CONSOLE, full=self._disk_full))
            spec = sockets.placed(spec, home)
            self.machine = Machine(
                spec, console_in=self._keys, console_copy=self.tap, warn=self._tell, started_ns=started_ns
            )
            self._room = Room(spec, self._tell)
            self.server = Server(wire.listen(home.directory, SOCKET), self._act)
            networking.announce(spec.networks, home.current_name())
        except BaseException as error:
            self.not_started(error)
            raise
        self.client = AgentClient(self.machine.agent_fd, wake=self.machine.ended_fd)
        self.client.companion = self.server
        self.server.after_each_turn(self._look)
        self.client.before_reading = self._restarted  # or a new boot's greeting would be taken for the old one's
        own = spec.vsock
        self._agent_socket = sockets.AgentSocket(own.path, self.client, self.server) if own and with_agent else None

    def _tell(self, text: str) -> None:
        """Pass on what the machine warns of, which any thread may do."""
        events.note(self.home.current_name(), "warning", text)
        if self._warn is not None:
            self._warn(text)

    def _disk_full(self, why: str) -> None:
        events.note(self.home.current_name(), "log lost", f"can't write the console's log: {why}")

    def not_started(self, error: BaseException) -> None:
        """Take down and note what is not to start. The VM's directory stays: whoever made it removes it."""
        if hasattr(self, "machine"):
            networking.release(self.machine.spec.networks)
            self.machine.close()
        self._close_files()
        self.noted.state = "ended"
        self.noted.ended = Ended(
            reason="not started",
            status=getattr(error, "exit_status", 1),
            detail=files.text(str(error)),
            at=time.time(),
            wanted=False,
        )
        try:
            self.home.store(self.noted)
        except OSError:
            pass

    # Its life.

    def start(self) -> None:
        self.machine.start()
        self.noted.engine = self.machine.stats.accel
        self._note("running", "started", self.noted.engine)

    def _note(self, state: str, event: str = "", detail: str = "") -> None:
        self.noted.state = state
        try:
            self.home.store(self.noted)
        except OSError:
            pass  # a full disk: the VM goes on, and its old record is whole
        if event:
            events.note(self.home.current_name(), event, detail)

    def serve(self) -> Ended:
        """Run the loop until the machine has ended."""
        while True:
            try:
                self.client.turn()
            except Woken:
                break
            except (AgentGone, ProtocolError) as error:
                if not self._restarted():
                    self.client.give_up(error)
        end = self.machine.wait()
        assert end is not None
        ended = outcome.judge(self.machine, end)
        if self.stopping:
            ended.reason, ended.wanted = self.stopping, True
        return ended

    def finish(self, ended: Ended) -> None:
        """Take everything down, and note how it ended. What goes when it ends, goes."""
        if self.finished:
            return
        self.finished = True
        ended.at = ended.at or time.time()
        if self.noted.state not in ("stopping", "ended"):
            self.noted.state = "stopping"
        if self._agent_socket is not None:
            self._agent_socket.close()
        networks = self.machine.spec.networks
        self.machine.close()
        self._note_undriven()
        networking.release(networks)
        self.noted.ended = ended
        self._note("ended", "ended", f"{ended.reason}{f': {ended.detail}' if ended.detail else ''}")
        self.server.finish(
            {"reason": ended.reason, "status": ended.status, "detail": ended.detail, "wanted": ended.wanted}
        )
        try:
            os.unlink(SOCKET, dir_fd=self.home.directory)
        except OSError:
            pass
        self._close_files()
        if self.noted.temporary:
            self.home.discard()

    def _close_files(self) -> None:
        if hasattr(self, "tap"):
            self.tap.close()
        if self._own_keys:
            os.close(self._keys)
            os.close(self._keyboard)
            self._own_keys = False

    def _restarted(self) -> bool:
        """Whether the guest has begun anew since this was asked last, or is about to; its agent is a new one then."""
        if self.machine.resets != self._resets and self.machine.boots == self._boots:
            self._resets = self.machine.resets
            self.client.restart()  # what is asked for from here on waits for the next boot
            return True
        if self.machine.boots == self._boots or self.machine.boots == 0:
            return False
        self._boots, self._resets = self.machine.boots, self.machine.resets
        self.client.restart()
        events.note(self.home.current_name(), "rebooted")
        return True

    def _look(self, now: float) -> float | None:
        """After each turn of the loop."""
        self._restarted()
        moments = []
        if self._stop_at is not None:
            if now >= self._stop_at:
                self._stop_at = None
                self.machine.stop("it did not power off in time")
            else:
                moments.append(self._stop_at)
        for orphan in list(self._orphans):
            command, moment = orphan
            if command.status is not None or command.error is not None:
                self._orphans.remove(orphan)
            elif now >= moment:
                self.client.signal(command, 9)
                self._orphans.remove(orphan)
            else:
                moments.append(moment)
        for look in (self._look_for_drivers, self._look_at_balloon, self._room.look):
            if (again := look(now)) is not None:
                moments.append(again)
        return min(moments, default=None)

    def _look_for_drivers(self, now: float) -> float | None:
        """Some time after a guest in the background is up, note which devices it does not use; in the foreground,
        cli.session tells."""
        if self._drivers_at is None and self.client.greeted and not self.noted.foreground:
            self._drivers_at = now + DRIVER_SECONDS
        if self._drivers_at is None or self._drivers_told:
            return None
        if now >= self._drivers_at:
            self._note_undriven()
        return self._drivers_at

    def _look_at_balloon(self, now: float) -> float | None:
        """Note what the balloon holds, for `kvmkit ps`: once a second while it grows or shrinks."""
        try:
            balloon = self.machine.board.virtio.balloon
        except KvmkitError:  # it is ending
            return None
        if balloon is None or self.noted.state != "running":
            return None
        if now >= self._balloon_at and balloon.given_bytes != self.noted.balloon:
            self._balloon_at = now + BALLOON_SECONDS
            self.noted.balloon = balloon.given_bytes
            self._note(self.noted.state)
        settled = balloon.given_bytes == self.noted.balloon == self.noted.memory - balloon.target
        return None if settled else max(self._balloon_at, now + BALLOON_SECONDS / 2)

    def _note_undriven(self) -> None:
        if self._drivers_told or self.noted.foreground:
            return
        self._drivers_told = True
        for line in self.machine.undriven():
            sys.stderr.write(f"warning: {line}\n")
            events.note(self.home.current_name(), "no driver", line)

    def _orphan(self, command: Command) -> None:
        self._orphans.append((command, time.monotonic() + GRACE_SECONDS))

    # What is asked of it.

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """Ask the guest to power off, by its agent or its power button, and end it when `seconds` are over."""
        if self.machine.state is State.PAUSED:
            self.machine.resume()
        self.stopping = self.stopping or "stopped"
        self._note("stopping")
        if self.client.greeted and self.client.broken is None:
            self.client.ask_poweroff()
        else:
            try:
                self.machine.press_power_button()
            except KvmkitError:
                pass  # it is ending
            self._ask_other_agent()
        until = time.monotonic() + max(seconds, 0.0)
        self._stop_at = until if self._stop_at is None else min(self._stop_at, until)

    def _ask_other_agent(self) -> None:
        """A guest that does not heed its power button may have qemu-ga."""
        from kvmkit.guest.qga import PORT

        ports = [port.path for port in self.machine.spec.console_ports if port.name == PORT]
        if ports:
            from threading import Thread

            from kvmkit.manager import foreign

            Thread(target=foreign.power_off, args=(ports[0],), daemon=True).start()

    def kill(self, why: str = "killed") -> None:
        """Pull the plug."""
        self.stopping = why
        self._note("stopping")
        self.machine.stop(why)

    def type(self, keys: bytes) -> None:
        """Keys for the guest's console. What it takes no more of is lost, as on a real line."""
        try:
            os.write(self._keyboard, keys)
        except BlockingIOError:
            pass

    def pause(self) -> None:
        self.machine.pause()
        if self.noted.state == "running":
            self._note("paused", "paused")

    def resume(self) -> None:
        self.machine.resume()
        self.client.set_time()
        self.client.add_entropy()  # what was held may have been copied meanwhile
        if self.noted.state == "paused":
            self._note("running", "resumed")

    def change(self, request: Request) -> dict[str, Any]:
        """Change the machine while it runs; what there is to say of it."""
        from kvmkit.machine import changes

        if request.verb == "attach":
            if request.unit is None:
                raise BadInput("attach: no device is given")
            return {"target": changes.attach_scsi(self.machine, request.unit)}
        if request.verb == "detach":
            changes.detach_scsi(self.machine, request.target)
            return {}
        unknown = [what for what, _ in request.changes if what not in (*changes.SETTABLE, "root-size")]
        if unknown:
            raise BadInput(f"this VM's process can't set {unknown[0][:40]!r}: it is of another version of kvmkit")
        return {"now": [self._set(what, text) for what, text in request.changes]}

    def _set(self, what: str, text: str) -> str:
        from kvmkit.machine import changes
        from kvmkit.manager import rootdisk

        if what not in ("disk", "root-size"):
            return changes.SETTABLE[what](self.machine, text)
        before = self._root_size()
        if what == "root-size":
            rootdisk.size_of(text)
            number = rootdisk.number(self.machine.spec)
            now = changes.set_disk(self.machine, f"{number},size={text}", f"--root-size {text}")
        else:
            now = changes.set_disk(self.machine, text)
        size = self._root_size()
        if size != before:
            self.client.grow_root(size)
            rootdisk.note_size(self.home, size)
        return now

    def _root_size(self) -> int:
        """In bytes; 0: it has no root disk of its own."""
        from kvmkit.manager import rootdisk

        try:
            number = rootdisk.number(self.machine.spec)
        except BadInput:
            return 0
        return self.machine.change(lambda board: board.virtio.disks[number].size)

    def numbers(self) -> dict[str, Any]:
        """What `kvmkit stats` and `kvmkit inspect` show of it."""
        report = self.machine.report()
        times = os.times()
        return {
            "time": time.time(),
            "state": self.noted.state,
            "agent": self.client.greeted and self.client.broken is None,
            "agent_channel": "vsock" if self.client.fast else "serial",
            "engine": report.accel,
            "uptime_seconds": time.time() - self.noted.started,
            "cpu_seconds": times.user + times.system,
            "memory_given_bytes": self.noted.memory,
            "memory_used_bytes": resident(),
            "exits": report.exits,
            **self._balloon(),
            "console_readers": self.tap.readers,
            "boots": self.machine.boots,
            "networks": self._cards(),
        }

    def _balloon(self) -> dict[str, Any]:
        """What the balloon holds, and what the guest says of its memory as of the call before."""
        try:
            balloon = self.machine.board.virtio.balloon
        except KvmkitError:
            return {}
        if balloon is None:
            return {}
        balloon.ask_stats()
        told = {"target_bytes": balloon.target, "given_bytes": balloon.given_bytes}
        return {"balloon": {**told, "returned_bytes": balloon.returned_bytes, "guest": balloon.stats()}}

    def _cards(self) -> list[dict[str, Any]]:
        """Its network cards: what went each way, by queue pair."""
        try:
            cards = self.machine.board.virtio.networks
        except KvmkitError:
            return []
        return [
            {"name": card.name, "mac": card.mac.hex(":"), "link": bool(card.link), "pairs": card.counters()}
            for card in cards
        ]

    def _check_agent(self) -> None:
        if not self.with_agent:
            raise KvmkitError("its guest has no agent of kvmkit's: it runs a kernel alone, or was given --console")
        if self.client.broken is not None:
            raise self.client.broken
        if self.noted.state == "paused":
            name = self.home.current_name()
            raise KvmkitError(f"{name} is paused: its guest runs nothing before `kvmkit resume {name}`")

    def _act(self, peer: Peer, request: Request) -> Task | None:
        from kvmkit.manager import tasks  # most VMs that run a command are never asked for anything

        match request.verb:
            case "exec":
                self._check_agent()
                return tasks.Exec(peer, self.client, request, self._orphan)
            case "read" | "write":
                self._check_agent()
                return tasks.Transfer(peer, self.client, request, self._orphan)
            case "ready":
                self._check_agent()
                return tasks.Ready(peer, self.client, request.timeout)
            case "console":
                if not self._own_keys:
                    raise KvmkitError("its console is on the terminal that `kvmkit run` was called from")
                peer.say({"ok": True})
                peer.raw = True
                return tasks.Console(peer, self.tap, self._keyboard)
            case "stats" if request.every is not None:
                return tasks.Stats(peer, request.every, self.numbers)
            case "stats":
                peer.say(self.numbers())
                return None
            case "stop" | "kill" | "wait":
                if request.verb == "stop":
                    self.stop(STOP_SECONDS if request.timeout is None else request.timeout)
                elif request.verb == "kill":
                    self.kill()
                peer.say({"ok": True})
                return tasks.Wait(peer)
            case "pause":
                self.pause()
            case "resume":
                self.resume()
            case "input":
                from kvmkit.machine.changes import inject

                peer.say({"ok": True, "taken": inject(self.machine, request.device, request.events)})
                return None
            case "set" | "attach" | "detach":
                peer.say({"ok": True, **self.change(request)})
                return None
            case _:
                raise BadInput(f"this VM's process knows no {request.verb[:40]!r}: it is of another version of kvmkit")
        peer.say({"ok": True})
        return None


def resident() -> int:
    """Bytes of memory this process has now, guest RAM included. Source: proc_pid_statm(5)."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
