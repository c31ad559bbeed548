"""The default guest on the `kvm` engine, by the Python API: a machine, and the agent in it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from kvmkit.guest import images
from kvmkit.guest.client import AgentClient
from kvmkit.machine import End, Machine, MachineSpec

BOOT_SECONDS = 60
END_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Ran:
    status: int
    out: str
    err: str


class Linux:
    """A running guest. `append` adds kernel parameters, `options` are MachineSpec's."""

    def __init__(self, append: str = "", **options: Any) -> None:
        image = images.ensure()
        spec = MachineSpec(
            kernel=str(image.kernel),
            initrd=(str(image.initrd),),
            append=f"console=ttyS0 {image.append} panic=-1 kvmkit.channel=ttyS1 {append}",
            accel="kvm",
            **options,
        )
        self.machine = Machine(spec)
        try:
            self.client = AgentClient(self.machine.agent_fd, wake=self.machine.ended_fd)
            self.machine.start()
            self.client.wait_hello(BOOT_SECONDS)
        except BaseException:
            print(self.machine.console.text(40))
            self.machine.close()
            raise

    def run(self, *argv: str, timeout: float = 60) -> Ran:
        out, err = os.memfd_create("out"), os.memfd_create("err")
        try:
            status = self.client.run(list(argv), stdout=out, stderr=err, timeout=timeout)
            return Ran(status, _text(out), _text(err))
        finally:
            os.close(out)
            os.close(err)

    def sh(self, script: str, timeout: float = 60) -> str:
        """What a shell script writes; one that fails is a failure."""
        ran = self.run("sh", "-c", script, timeout=timeout)
        assert ran.status == 0, ran
        return ran.out

    def background(self, script: str) -> None:
        """Start a script that goes on after this; its output goes nowhere."""
        self.client.start(["sh", "-c", script], stdout=None, stderr=None)

    def again(self) -> None:
        """Wait for the agent of the next boot."""
        self.client = AgentClient(self.machine.agent_fd, wake=self.machine.ended_fd)
        self.client.wait_hello(BOOT_SECONDS)

    def end(self) -> End:
        """Wait for the machine's end."""
        end = self.machine.wait(END_SECONDS)
        assert end is not None, self.machine.console.text(20)
        return end

    def __enter__(self) -> Linux:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            print(self.machine.console.text(40))
        self.machine.close()


def _text(fd: int) -> str:
    return os.pread(fd, 1 << 24, 0).decode(errors="replace")


def kvmkit(*arguments: str, data: bytes = b"", timeout: float = 90) -> subprocess.CompletedProcess[bytes]:
    """The command line, as a user types it; `data` is its standard input."""
    command = [sys.executable, "-m", "kvmkit", *arguments]
    return subprocess.run(command, input=data, capture_output=True, timeout=timeout, check=False)
