"""The threads that run vCPUs, one each, and the gate that holds them while the machine is paused."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from kvmkit.accel import Exit, ExitReason

if TYPE_CHECKING:
    from kvmkit.accel import VirtualCpu

STACK_BYTES = 1 << 20


class VcpuThreads:
    """Runs `vcpus` until `finish`.

    On a vCPU's thread, `leave(vcpu, exit)` is called when only the machine can decide, and `failed(vcpu, error)` when
    `run` raised, which a device's mistake comes to. After either the thread ends.
    """

    def __init__(
        self,
        vcpus: Sequence[VirtualCpu],
        leave: Callable[[VirtualCpu, Exit], None],
        failed: Callable[[VirtualCpu, Exception], None],
        *,
        paused: bool = False,
    ) -> None:
        self.vcpus = vcpus
        self._leave = leave
        self._failed = failed
        self._changed = threading.Condition()
        self._paused = paused
        self._finished = False
        self._held = 0
        self._threads = [
            threading.Thread(target=self._run, args=(vcpu,), name=f"vcpu{vcpu.index}", daemon=True) for vcpu in vcpus
        ]
        self._alive = len(self._threads)

    def start(self) -> None:
        before = threading.stack_size(STACK_BYTES)
        try:
            for thread in self._threads:
                thread.start()
        finally:
            threading.stack_size(before)

    def _enter(self) -> bool:
        """Wait while paused; False when it is over."""
        with self._changed:
            if self._paused and not self._finished:
                self._held += 1
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._finished or not self._paused)
                self._held -= 1
            return not self._finished

    def _run(self, vcpu: VirtualCpu) -> None:
        try:
            while self._enter():
                exit_ = vcpu.run()
                if exit_.reason != ExitReason.KICKED:
                    self._leave(vcpu, exit_)
                    return
        except Exception as error:
            self._failed(vcpu, error)
        finally:
            with self._changed:
                self._alive -= 1
                self._changed.notify_all()

    def pause(self) -> None:
        """Hold every vCPU outside `run`; come back when they are. May not be called on a vCPU's thread."""
        with self._changed:
            self._paused = True
        self._kick()
        with self._changed:
            self._changed.wait_for(lambda: self._finished or self._held >= self._alive)

    def resume(self) -> None:
        with self._changed:
            self._paused = False
            self._changed.notify_all()

    def finish(self) -> None:
        """Have every thread end, soon. Any thread may call it, and it does not wait."""
        with self._changed:
            self._finished = True
            self._changed.notify_all()
        self._kick()

    def _kick(self) -> None:
        for vcpu in self.vcpus:
            vcpu.kick()

    def join(self) -> None:
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()
