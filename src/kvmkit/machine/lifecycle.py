"""A machine's life: created, running, paused, ended. One thread, the supervisor, starts it, restarts it and ends it."""

from __future__ import annotations

import gc
import os
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from kvmkit.accel import Exit, ExitReason
from kvmkit.devices.sinks import ConsoleLog, FileSink, SocketSink
from kvmkit.errors import KvmkitError
from kvmkit.machine.board import Board
from kvmkit.machine.channels import Channel, Pump
from kvmkit.machine.end import End, EndReason, State
from kvmkit.machine.loading import load
from kvmkit.machine.spec import MachineSpec
from kvmkit.machine.stats import Report, Stats
from kvmkit.machine.vcpus import VcpuThreads

if TYPE_CHECKING:
    from kvmkit.accel import VirtualCpu
    from kvmkit.machine.throwaway import Copies

Changed = TypeVar("Changed")
AGENT_BUFFER = 1 << 18
"""Bytes in flight on the agent's channel, each way."""
_POWER_OFF_EVENT, _RESET_EVENT = 1, 2
"""KVM_SYSTEM_EVENT_SHUTDOWN and _RESET of <linux/kvm.h>."""


class Machine:
    """One VM made from `spec`. Every method may be called by any thread; none is to be called on a vCPU's.

    The console's input comes from `console_in` (-1: there is none), and its output goes to `console_out` when the spec
    says "attach"; both stay the caller's. `console_copy` gets its output too, on a thread of the machine's, and must
    not block. `boots` counts the guest's starts, `resets` how often it was to begin anew. `agent_fd` is the client's
    end of the stream to the guest's second serial port, open until `close`. `ended_fd` becomes readable when the
    machine has ended.

    Making one checks the spec, takes the engine and loads the kernel, and raises BadInput or HostError in one line.
    """

    def __init__(
        self,
        spec: MachineSpec,
        *,
        console_in: int = -1,
        console_out: int = 1,
        console_copy: Callable[[bytes], None] | None = None,
        warn: Callable[[str], None] | None = None,
        started_ns: int | None = None,
    ) -> None:
        from kvmkit.accel.choose import choose

        spec.check()
        self._copies: Copies | None = None
        if spec.throws_away:
            from kvmkit.machine.throwaway import Copies

            self._copies = Copies(spec)
            spec = self._copies.spec
        self.spec = spec
        self.stats = Stats(started_ns)
        self._warn = warn
        self._undriven: list[str] = []
        self._engine = choose(spec.accel, warn)
        self._changed = threading.Condition(threading.RLock())
        self._state = State.CREATED
        self._end: End | None = None
        self._reset = False
        self._control = threading.Lock()  # held by whoever pauses, resumes, or takes the board down
        self._board: Board | None = None
        self._threads: VcpuThreads | None = None
        self._pump: Pump | None = None
        self._supervisor = threading.Thread(target=self._supervise, name="machine", daemon=True)
        self._closed = False
        self.boots = 0
        self.resets = 0
        attached = spec.console == "attach"
        self._forward = FileSink(console_out) if attached else None
        self._console_in = console_in
        self.console = ConsoleLog(forward=self._forward, copy=console_copy)
        self.debug = ConsoleLog()
        self._agent_host, self._agent_client = socket.socketpair()
        for end in (self._agent_host, self._agent_client):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, AGENT_BUFFER)
        self.ended_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        try:
            self._build()
        except BaseException:
            self.close()
            raise

    # What is known of it.

    @property
    def state(self) -> State:
        return self._state

    @property
    def agent_fd(self) -> int:
        return self._agent_client.fileno()

    @property
    def board(self) -> Board:
        """The devices and vCPUs of now; to be looked at while paused. Raises KvmkitError when it has ended."""
        board = self._board
        if board is None:
            raise KvmkitError("the machine has ended")
        return board

    def report(self) -> Report:
        """Statistics of now."""
        self._note_console()
        board = self._board
        return self.stats.report(board.exits() if board is not None else None)

    def undriven(self) -> list[str]:
        """A line for each virtio device that the guest has not taken into use, with what its kernel needs for that."""
        board = self._board
        return self._undriven if board is None else board.virtio.undriven()

    # Its life.

    def start(self) -> None:
        """Run the first instruction. Raises KvmkitError when it has been started before."""
        with self._changed:
            if self._state is not State.CREATED or self._end is not None:
                raise KvmkitError(f"a machine that is {self._state.value} can't be started")
            self._state = State.RUNNING
            self._supervisor.start()

    def pause(self) -> None:
        """Hold every vCPU and all input; come back when nothing moves. Nothing happens when it is paused already."""
        with self._control:
            with self._changed:
                if self._state is State.PAUSED:
                    return
                if self._state is not State.RUNNING or self._end is not None:
                    raise KvmkitError(f"a machine that is {self._word()} can't be paused")
                threads, pump, board = self._threads, self._pump, self._board
            if threads is not None:
                threads.pause()
            if pump is not None:
                pump.pause()
            if board is not None:
                board.virtio.hold()
            with self._changed:
                if self._state is State.RUNNING:
                    self._state = State.PAUSED

    def resume(self) -> None:
        """Go on after `pause`. Nothing happens when it is running."""
        with self._control:
            with self._changed:
                if self._state is State.RUNNING:
                    return
                if self._state is not State.PAUSED or self._end is not None:
                    raise KvmkitError(f"a machine that is {self._word()} can't be resumed")
                self._state = State.RUNNING
                threads, pump, board = self._threads, self._pump, self._board
            if board is not None:
                board.virtio.release()
            if pump is not None:
                pump.resume()
            if threads is not None:
                threads.resume()

    def stop(self, detail: str = "") -> None:
        """End it now, as pulling the plug does. It need not wait for anything; nothing happens when it has ended."""
        self._finish(End(EndReason.STOPPED, detail=detail))
        with self._changed:
            if self._state is State.CREATED:
                self._down()
                self._over()

    def press_power_button(self) -> None:
        """Ask the guest to turn itself off (ACPI). Raises KvmkitError when it is not running."""
        with self._control:  # not _changed: the guest may hold the device and want that
            board = self._board
            if board is None or self._state not in (State.RUNNING, State.PAUSED):
                raise KvmkitError(f"a machine that is {self._word()} has no use for its power button")
            board.power.press_power_button()

    def change(self, action: Callable[[Board], Changed]) -> Changed:
        """`action` on the board, which nobody pauses or takes down meanwhile. KvmkitError when it has ended."""
        with self._control:
            return action(self.board)

    def reset(self) -> None:
        """The reset button, or the guest's own reset: a new start with the spec's `reboot`, else the end."""
        self._guest_reset("reset")

    def wait(self, timeout: float | None = None) -> End | None:
        """Wait for the end, `timeout` seconds at most; None: it has not come."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._state is State.ENDED, timeout):
                return None
        if self._supervisor.ident is not None and self._supervisor is not threading.current_thread():
            self._supervisor.join()
        return self._end

    def close(self) -> None:
        """Stop it if it runs, and give everything back. After it there is no thread, descriptor or memory left."""
        self.stop("closed")
        self.wait()
        with self._changed:
            if self._closed:
                return
            self._closed = True
        if self._copies is not None:
            self._copies.close()
        self._agent_client.close()
        os.close(self.ended_fd)
        self.ended_fd = -1

    def __enter__(self) -> Machine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # What the guest and its vCPUs ask for, on their threads. See board.Events, of which `reset` is above.

    def power_off(self) -> None:
        self._finish(End(EndReason.POWEROFF))

    def debug_exit(self, status: int) -> None:
        self._finish(End(EndReason.DEBUG_EXIT, status))

    def _guest_reset(self, how: str) -> None:
        with self._changed:
            if not self.spec.reboot:
                self._finish(End(EndReason.RESET, detail=how))
                return
            self._reset = True
            threads = self._threads
            self._changed.notify_all()
        if threads is not None:
            threads.finish()

    def _left(self, vcpu: VirtualCpu, exit_: Exit) -> None:
        """A vCPU came back with something that only the machine can decide."""
        from kvmkit.accel.report import report

        if exit_.reason == ExitReason.SYSTEM_EVENT and exit_.code == _POWER_OFF_EVENT:
            self.power_off()
        elif exit_.reason == ExitReason.SYSTEM_EVENT and exit_.code == _RESET_EVENT:
            self._guest_reset(exit_.detail)
        elif exit_.reason == ExitReason.SHUTDOWN and self.spec.triple_fault == "reset":
            self._guest_reset("a triple fault")
        else:
            reason = EndReason.SHUTDOWN if exit_.reason == ExitReason.SHUTDOWN else EndReason.FAULT
            text = report(vcpu, self.board.memory, exit_)
            self._finish(End(reason, detail=text.split("\n", 1)[0], report=text))

    def _failed(self, vcpu: VirtualCpu, error: Exception) -> None:
        self._broken(f"vCPU {vcpu.index}", error)

    def _broken(self, where: str, error: Exception) -> None:
        """Something here failed while the guest ran: a fault of the machine's, not of its user's."""
        import traceback  # not on the way to a run that goes well

        text = "" if isinstance(error, KvmkitError) else "".join(traceback.format_exception(error))
        self._finish(End(EndReason.FAULT, detail=f"{where}: {error or type(error).__name__}", report=text))

    def _finish(self, end: End) -> None:
        """It is to end, for this reason unless there is one already."""
        with self._changed:
            if self._end is not None:
                return
            self._end = end
            threads = self._threads
            self._changed.notify_all()
        if threads is not None:
            threads.finish()

    # The supervisor.

    def _supervise(self) -> None:
        deadline = None if self.spec.timeout is None else time.monotonic() + self.spec.timeout
        try:
            while True:
                self._up()
                with self._changed:
                    left = None if deadline is None else max(deadline - time.monotonic(), 0)
                    decided = self._changed.wait_for(lambda: self._end is not None or self._reset, left)
                if not decided:
                    self._finish(End(EndReason.TIMEOUT, detail=f"it ran longer than {self.spec.timeout:g} s"))
                if self._end is None:
                    self.resets += 1  # before its devices go, by which others notice
                with self._control:
                    self._down()
                    if self._end is not None:
                        return
                    with self._changed:
                        self._reset = False
                    gc.collect()  # devices know each other in circles: RAM goes before there is more of it
                    self._build()
        except Exception as error:
            self._broken("the machine", error)
            with self._control:
                self._down()
        finally:
            with self._changed:
                self._over()

    def _build(self) -> None:
        """The board phase and the boot phase."""
        agent = SocketSink(self._agent_host)
        self._board = Board(self.spec, self._engine, self, self.console, agent, self.debug, self._warn)
        self.stats.accel = self._board.vm.engine
        load(self._board)

    def _up(self) -> None:
        """Start the threads of a board that is ready."""
        board = self.board
        with self._changed:
            sources = (self._console_in, self._agent_host.fileno())
            channels = [Channel(port, source) for port, source in zip(board.serial, sources, strict=True)]
            paused = self._state is State.PAUSED  # the guest reset itself while it was being paused
            if paused:
                board.virtio.hold()
            self._pump = Pump(channels, board.timed, lambda error: self._broken("the pump", error), paused=paused)
            self._threads = VcpuThreads(board.vcpus, self._left, self._failed, paused=paused)
            self._pump.start()
            self.stats.mark("first_instruction")
            self.boots += 1
            self._threads.start()
            if self._end is not None:  # stop() came before there was anything to stop
                self._threads.finish()

    def _down(self) -> None:
        """Take everything down that `_up` and `_build` made. The order matters: who may call whom ends first."""
        with self._changed:
            threads, pump, board = self._threads, self._pump, self._board
            self._threads = self._pump = self._board = None
        if threads is not None:
            threads.finish()
            threads.join()
        if pump is not None:
            pump.close()
        if board is not None:
            self._undriven = board.virtio.undriven()
            try:
                self.stats.add_exits(board.exits())
            finally:
                board.close()

    def _over(self) -> None:
        """The last step; `_changed` is held."""
        self._note_console()
        if self._forward is not None:
            self._forward.close()
        self._agent_host.close()
        self._state = State.ENDED
        os.eventfd_write(self.ended_fd, 1)
        self._changed.notify_all()

    def _note_console(self) -> None:
        if self.console.first_line_ns is not None:
            self.stats.mark("kernel_first_line", self.console.first_line_ns)

    def _word(self) -> str:
        return "ending" if self._end is not None and self._state is not State.ENDED else self._state.value
