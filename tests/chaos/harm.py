"""What is done to the VMs: one harm at a time, drawn at random."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable

from tests.cli.calling import COMMAND, environment

from kvmkit.errors import BadInput

from .vm import LATE_SECONDS, ChaosVM, call

PAIRS = (
    ("start", "start"), ("stop", "start"), ("stop", "stop"), ("kill", "start"), ("pause", "stop"), ("restart", "kill"),
    ("rm", "start"), ("kill", "kill"), ("pause", "resume"), ("restart", "restart"), ("rename", "stop"),
)  # fmt: skip
"""Verbs that are called at one moment, of which neither may know the other."""


class Harm:
    """`done`: how often each was done. `trouble`: what came of it that should never be."""

    def __init__(self, vms: list[ChaosVM], chance: random.Random) -> None:
        self._vms = vms
        self._chance = chance
        self.done: Counter[str] = Counter()
        self.trouble: list[str] = []

    def once(self) -> None:
        vm = self._chance.choice(self._vms)
        harms: list[tuple[Callable[[ChaosVM], None], int]] = [
            (self._kill_part, 10), (self._kill_cli, 3), (self._crash_guest, 2), (self._two_at_once, 4),
        ]  # fmt: skip
        chosen = self._chance.choices([harm for harm, _ in harms], [weight for _, weight in harms])[0]
        try:
            chosen(vm)
        except subprocess.TimeoutExpired as late:
            self.trouble.append(f"{late.cmd[len(COMMAND) :]} hung")
        except BadInput:
            pass  # its minder has it between two names

    def _kill_part(self, vm: ChaosVM) -> None:
        parts = vm.processes()
        if not parts:
            return
        kind = self._chance.choice(sorted(parts))
        pid = self._chance.choice(parts[kind])
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        self.done[f"killed {kind}"] += 1

    def _kill_cli(self, vm: ChaosVM) -> None:
        """A command that is killed somewhere on its way."""
        words = self._chance.choice(
            [["stop", vm.name], ["start", vm.name], ["restart", vm.name], ["exec", vm.name, "--", "sleep", "9"], ["ps"],
             ["cp", vm.name + ":/bin/sh", str(vm.volume / "copy")], ["run", "tiny", "--accel", "tcg", "--", "true"]]
        )  # fmt: skip
        process = subprocess.Popen(
            [*COMMAND, *words], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env=environment(),
        )  # fmt: skip
        time.sleep(self._chance.uniform(0.02, 1.5))
        process.kill()
        process.wait()
        self.done[f"killed {words[0]}"] += 1

    def _crash_guest(self, vm: ChaosVM) -> None:
        """Its kernel panics, and the agent with it: nothing else ends the first process of a system."""
        call("exec", "--timeout", "20", vm.name, "--", "sh", "-c", "echo c >/proc/sysrq-trigger")
        self.done["crashed the guest and its agent"] += 1

    def _two_at_once(self, vm: ChaosVM) -> None:
        pair = self._chance.choice(PAIRS)
        running = []
        for verb in pair:
            words = [*COMMAND, verb, vm.name]
            if verb == "rename":
                words.append(vm.name + "x")
            if verb == "stop":
                words += ["--timeout", "5"]
            running.append(_begin(words))
        for process, verb in zip(running, pair, strict=True):
            try:
                _, said = process.communicate(timeout=LATE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                raise
            if "Traceback" in said or said.count("\n") > 1 or process.returncode not in (0, 1, 2):
                self.trouble.append(f"{' + '.join(pair)}: {verb} ended with {process.returncode}: {said}")
        call("rename", vm.name + "x", vm.name)  # nothing happens where it was not renamed
        if not _there(vm.name):  # `rm` was allowed to
            vm.create()
        self.done[" + ".join(pair)] += 1


def _begin(words: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment()
    )


def _there(name: str) -> bool:
    from kvmkit.manager import home

    return name in home.listing()
