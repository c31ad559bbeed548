"""The reckoning: what is left, what is lost, and what nobody can explain."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
from pathlib import Path

from .vm import CHECKED, KEPT, ChaosVM, call

GONE_SECONDS = 10.0
STATES = {"created", "stopped", "failed", "died"}


def states() -> list[str]:
    """Every VM is in a state that `ps` has a word for, and one that has ended says why."""
    wrong = []
    done = call("ps", "-a", "--json")
    for row in json.loads(done.stdout):
        if row["state"] not in STATES:
            wrong.append(f"{row['name']} is {row['state']} after all was stopped")
        elif row["state"] != "created" and not (row["ended"] or {}).get("reason"):
            wrong.append(f"{row['name']} is {row['state']}, and nothing says why")
    return wrong


def disks(vm: ChaosVM, machines: Path, work: Path) -> list[str]:
    """The file systems are whole, after their journal is replayed, and what the guest knew to be safe is there."""
    wrong = []
    done = subprocess.run(["qemu-img", "check", "-q", str(vm.disk)], capture_output=True, text=True, check=False)
    if done.returncode not in (0, 3):  # 3: clusters that are leaked, which a killed writer leaves
        wrong.append(f"{vm.disk.name}: qemu-img check: {done.stdout}{done.stderr}")
    raw = work / f"{vm.name}.check"
    subprocess.run(["qemu-img", "convert", "-O", "raw", str(vm.disk), str(raw)], check=True)
    wrong += _fsck(raw, vm.disk.name)
    for number in sorted(vm.safe)[-CHECKED:]:
        if number <= max(vm.safe) - KEPT:
            continue
        dumped = subprocess.run(["debugfs", "-R", f"cat /f{number}", str(raw)], capture_output=True, check=False)
        if hashlib.sha256(dumped.stdout).hexdigest() != vm.safe[number]:
            wrong.append(f"{vm.name}: file {number}, which was safe, has {len(dumped.stdout)} other bytes")
    raw.unlink()
    layer = machines / vm.name / "layer.raw"
    if layer.exists():
        wrong += _fsck(layer, f"{vm.name}'s root disk")
    return wrong


def _fsck(image: Path, name: str) -> list[str]:
    """Source: e2fsck(8): 0 clean, 1 its journal was replayed. Then nothing may be left to do."""
    preened = subprocess.run(["e2fsck", "-p", str(image)], capture_output=True, text=True, check=False)
    forced = subprocess.run(["e2fsck", "-f", "-n", str(image)], capture_output=True, text=True, check=False)
    if preened.returncode not in (0, 1) or forced.returncode:
        return [f"{name}: e2fsck: {preened.returncode}, {forced.returncode}: {preened.stdout}{forced.stdout}"]
    return []


def leftovers(home: Path, before: dict[str, set[str]]) -> list[str]:
    """Processes, mounts, interfaces, sockets and files that outlive the last VM."""
    end = time.monotonic() + GONE_SECONDS
    while found := processes(home):
        if time.monotonic() >= end:
            break
        time.sleep(0.1)
    wrong = [f"a process is left: {line}" for line in found]
    after = outside()
    wrong += [f"a mount is left: {line}" for line in after["mounts"] - before["mounts"] if str(home) in line]
    wrong += [f"an interface is left: {name}" for name in after["interfaces"] - before["interfaces"]]
    with open("/proc/net/unix", encoding="utf-8", errors="replace") as file:
        wrong += [f"a socket is left: {line.split()[-1]}" for line in file if str(home) in line]
    for directory in (home / "data" / "machines", home / "tmp", home / "run" / "switches"):
        if directory.is_dir():
            wrong += [f"a file is left: {entry}" for entry in directory.iterdir()]
    return wrong


def outside() -> dict[str, set[str]]:
    """What the host has that a VM might add to."""
    return {
        "mounts": set(Path("/proc/self/mounts").read_text().splitlines()),
        "interfaces": {name for name in os.listdir("/sys/class/net") if not name.startswith(("veth", "docker"))},
    }


def processes(home: Path) -> list[str]:
    """Processes that were started in this home, by their environment; but for this one."""
    found = []
    mark = f"KVMKIT_HOME={home}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        if process.name == str(os.getpid()):
            continue
        try:
            if mark in (process / "environ").read_bytes().split(b"\0"):
                words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found.append(f"{process.name} {words}")
        except OSError:
            continue  # it has gone, or is another user's
    return found
